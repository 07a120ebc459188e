"""A bias behind emulated kernels' steps, and gradients on an emulated GPU."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from emulator import cases, emulate
from emulator.gpu import host
from support.gpu_products import kernel_named

import codegemm
from codegemm import Product, arrays
from codegemm.engines.cuda import backward
from codegemm.formats import random_weight

CASES = [
    # rows, columns, configuration, kernel, rows of x
    (100, 512, "m1v4g128", "psumbook", 2),
    (100, 512, "m1v4g128", "psumbook", 1),
    (300, 256, "m2v8g-1", "dequant", 9),
    (300, 256, "m2v8g-1", "dequant_dense", 5),
    (64, 256, "m2v8g-1", "aqlm", 1),
    (100, 256, "q2g128", "lutgemm", 3),
    (64, 128, "e8p", "quip", 3),
    (64, 128, "qtip", "qtip", 3),
    (100, 256, "m1v4g128", "dense", 3),
    (96, 256, "m1v4g32+rotated+offsets", "dequant", 3),
    (96, 256, "m1v4g32+terms2", "psumbook", 1),
]
DTYPES = ("float16", "bfloat16", "float32")


@pytest.mark.parametrize(("case", "dtype"), [*zip(CASES, itertools.cycle(DTYPES))])
def test_y_is_rounded_once(case, dtype, emulated_gpu, make_weight, rng):
    rows, columns, config, name, n = case
    weight, x, product = cases.with_truth(make_weight, rng, rows, columns, config, dtype, n)
    bias = (-0.9 * product[0]).astype(np.float32)
    exact = (product + bias).astype(arrays.float_dtype(dtype))
    # Weights in bfloat16 have an error of their own; all other sums are good to a thousandth.
    own = (6e-3 if dtype == "bfloat16" else 2e-3) * np.linalg.norm(product, axis=1, keepdims=True) / np.sqrt(rows) * 4
    moved, there = weight.to("cuda"), emulated_gpu.asarray(x)
    plan = codegemm.plan(moved, n + 1, dtype, name, bias=bias)
    out = emulated_gpu.asarray(np.full((n, rows), np.nan, x.dtype))
    assert plan(there, out=out) is out
    wide = emulated_gpu.asarray(np.full((n, rows), np.nan, np.float32))
    plan(there, out=wide)
    linear = codegemm.linear(there, moved, bias.astype(np.float64), kernel=name)
    assert np.array_equal(host(linear), host(out))
    assert np.array_equal(host(wide).astype(x.dtype), host(out))
    step = np.spacing(abs(exact)).astype(np.float64)
    assert (abs(host(out).astype(np.float64) - exact.astype(np.float64)) <= own + step).all()


def test_the_launch_reads_and_writes_each_number_once(rng):
    weight = random_weight((300, 256), "m1v4g128", 1)
    kernel = kernel_named("dequant", weight.spec)
    x, bias = rng.standard_normal((5, 256)).astype(np.float16), rng.standard_normal(300).astype(np.float32)
    for order in emulate.ORDERS:
        y, reports = emulate.multiply(kernel, weight, x, np.float16, bias=bias, order=order)
        expected = emulate.multiply(kernel, weight, x)[0] + bias
        assert np.array_equal(y, expected.astype(np.float16))
    stored = reports[-1].of("store_y", "store", "global")
    assert stored.bytes == y.nbytes
    work = kernel.decide(Product.of(weight.spec, 5, np.float16, biased=True), emulate.SMALL_GPU).works[-1]
    assert work.bytes_written == y.nbytes


def test_a_plan_serves_the_thread_that_called_it(emulated_gpu, rng):
    weight = random_weight((100, 512), "m1v4g128", 1).to("cuda")
    x = emulated_gpu.asarray(rng.standard_normal((1, 512)).astype(np.float16))
    out = emulated_gpu.zeros((1, 100), np.float16)
    plan = codegemm.plan(weight, 1, np.float16)
    complaints = []

    def call(*operands):
        try:
            plan(*operands)
        except RuntimeError as error:
            complaints.append(str(error))

    def in_thread(*operands):
        thread = threading.Thread(target=call, args=operands)
        thread.start()
        thread.join()

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="x: shape"):  # which runs no product
        pool.submit(plan, x[:, :100]).result()
    call(x, out)
    in_thread(x, out)
    in_thread(x)
    assert complaints == ["this plan was called in another thread before: on a GPU make one for each thread"] * 2
    call(x, out)
    assert len(complaints) == 2


@pytest.mark.parametrize(("config", "dtype"), [*zip(("m1v4g64", "m2v4b4g32+rotated16+offsets", "e8p"), DTYPES)])
def test_g_times_w(config, dtype, emulated_gpu, monkeypatch, rng):
    """By columns of W, several slices of them."""
    weight = random_weight((48, 128), config, 1)
    g = rng.standard_normal((5, 48)).astype(arrays.float_dtype(dtype))
    truth = g.astype(np.float64) @ weight.dequantize(np.float64)
    monkeypatch.setattr(backward, "SLICE_BYTES", g.itemsize * 128 * 50)
    moved, out = weight.to("cuda"), emulated_gpu.asarray(np.full((5, 128), np.nan, g.dtype))
    backward.multiply(emulated_gpu.asarray(g), lambda x: codegemm.matmul(x, moved.T), out)
    limit = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-3}[dtype]
    assert np.linalg.norm(host(out).astype(np.float64) - truth) <= limit * np.linalg.norm(truth)
