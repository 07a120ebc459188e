"""Dense products on a GPU with a dequantised weight, the dequantising kernel in the emulator, the library in NumPy."""

import itertools
from unittest.mock import Mock

import numpy as np
import pytest
from emulator import cases, emulate
from emulator.gpu import Cublas
from support import errors

import codegemm
from codegemm import arrays, choice
from codegemm.baselines.cuda import Dense
from codegemm.devices import FIRST_GPU
from codegemm.engines.cuda import DequantDense, dequant_dense, gemm
from codegemm.formats.format import spec_of
from codegemm.kernel import Product
from codegemm.testing.truth import Truth

TOLERANCE = errors.TOLERANCE["dequant_dense"]
CASES = [
    # rows, columns, configuration, parts
    (65, 512, "m1v4g128", 1),
    (40, 1024, "m2v8g128", 1),
    (33, 7, "m8v1b1g1", 1),
    (50, 96, "m1v3b2g3", 1),
    (40, 180, "m3v5b5g15", 1),
    (70, 96, "m1v4b3g12", 3),
    (31, 110, "m2v11b7g-1", 1),
    (9, 36, "m1v12g36", 1),
    (50, 44, "m1v4g4", 2),
    (20, 128, "m1v8b16g-1", 1),
    (20, 128, "m1v16b12g64", 2),
    (5, 78, "m2v13b9g26", 1),
    (5, 26, "m3v2b10g2", 1),
]


SMALL_SLICES = 4096  # bytes: a few rows
PRODUCTS = list(zip(CASES, itertools.cycle(TOLERANCE)))


def steps_of(case):
    """Parts of a weight have the same."""
    (rows, columns, config, _), dtype = case
    product = Product.of(spec_of((rows, columns), config), 3, arrays.float_dtype(dtype), np.float32)
    return DequantDense().decide(product, emulate.SMALL_GPU)


@pytest.mark.parametrize("case", PRODUCTS, ids=str)
@pytest.mark.parametrize("order", ["forward", "shuffled"])
def test_emulated_dequant_dense(case, order, compiled, make_weight, rng):
    (*shape, config, parts), dtype = case
    weight = make_weight(*shape, config, parts)
    x = rng.standard_normal((3, weight.shape[1])).astype(arrays.float_dtype(dtype))
    y, reports = emulate.multiply(DequantDense(SMALL_SLICES), weight, x, order=order)
    assert cases.error(y, Truth(x, weight)) <= TOLERANCE[dtype]
    assert len(reports) == len(dequant_dense.slices(weight.spec, arrays.float_dtype(dtype), SMALL_SLICES)) >= parts
    stored = weight.codes.size * weight.codes.itemsize
    read = sum(report.of("dequantize", space="global").bytes for report in reports)
    assert read >= stored  # codes and scales


@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g128", "m1v16g-1"])
def test_emulated_dequantisation_moves_whole_sectors(config, make_weight, rng):
    """Every weight is written once, 16 bytes a thread, neighbours beside each other."""
    weight = make_weight(64, 4096, config)
    x = rng.standard_normal((1, 4096)).astype(np.float16)
    _, [report] = emulate.multiply(DequantDense(), weight, x)
    stores = report.of("store_weights", "store", "global")
    assert stores.bytes == 2 * 64 * 4096
    assert stores.sectors <= stores.least_sectors * (2 if config == "m1v16g-1" else 1)


def test_emulated_dequantised_weights_are_rounded_once(make_weight):
    """float32 weights are those of the definition; float16 ones the same, rounded."""
    weight = make_weight(33, 128, "m2v8b5g32")
    for dtype in ("float16", "float32"):
        x = np.eye(128, dtype=dtype)
        y, _ = emulate.multiply(DequantDense(), weight, x)
        assert np.array_equal(y.T, weight.dequantize(np.float32).astype(dtype))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_emulated_dense(dtype, emulated_gpu, make_weight, rng):
    weight = make_weight(40, 256, "m2v8g64")
    x = rng.standard_normal((5, 256)).astype(arrays.float_dtype(dtype))
    moved = weight.to("cuda")
    prepared = Dense().prepare(moved, FIRST_GPU)
    out = emulated_gpu.asarray(np.full((5, 40), np.nan, np.float32))
    Dense().run(prepared, emulated_gpu.asarray(x), out, None, None)
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    assert np.linalg.norm(out.host - truth) <= max(TOLERANCE[dtype], 4e-4) * np.linalg.norm(truth)


def test_slices_are_bounded_and_cover_the_rows(make_weight):
    weight = make_weight(300, 96, "m1v4b3g12", 3)
    for size in (1, 1000, 10**6):
        slices = dequant_dense.slices(weight.spec, np.dtype(np.float16), size)
        assert [row for _, first, end in slices for row in range(first, end)] == list(range(300))
        assert all((end - first) * 192 <= max(size, 192) for _, first, end in slices)
        assert {part: sum(e - f for p, f, e in slices if p == part) for part in range(3)} == {0: 100, 1: 100, 2: 100}
    assert emulate.SMALL_GPU.shared_per_multiprocessor // 4 >= dequant_dense.codebook_bytes(weight.spec)


@pytest.mark.parametrize("kernel", ["dense", "dequant_dense"])
def test_emulated_dense_products_are_captured(kernel, emulated_gpu, make_weight, rng):
    """A graph multiplies anew at every launch, on the stream of the launch."""
    weight = make_weight(40, 256, "m2v8g64").to("cuda")
    plan = codegemm.plan(weight, 5, np.float16, kernel)
    x, out = (emulated_gpu.zeros(shape, np.float16) for shape in ((5, 256), (5, 40)))
    stream = emulated_gpu.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        plan(x, out=out)
        graph = stream.end_capture()
    for _ in range(2):
        x.host[...] = rng.standard_normal((5, 256))
        graph.launch()
        truth = x.host.astype(np.float64) @ weight.dequantize(np.float64).T
        assert np.linalg.norm(out.host - truth) <= 1e-3 * np.linalg.norm(truth)


def test_cublas_has_a_workspace_for_each_stream(emulated_gpu, monkeypatch, rng):
    """A stream met first in a capture, when nothing may be allocated, gets one that was made beforehand."""
    monkeypatch.setattr(gemm, "_workspaces", {})
    monkeypatch.setattr(gemm, "_spare", {})
    x, dense = (emulated_gpu.asarray(rng.standard_normal(shape).astype(np.float16)) for shape in ((2, 64), (8, 64)))
    out = emulated_gpu.zeros((2, 8), np.float16)
    workspaces = []
    cublas = gemm._cublas()
    set_workspace = cublas.cublasSetWorkspace_v2
    monkeypatch.setattr(cublas, "cublasSetWorkspace_v2", lambda *a: workspaces.append(a[1:]) or set_workspace(*a))

    def multiply(stream):
        gemm.multiply(x, dense, out, stream=stream)

    first, second, third = (emulated_gpu.cuda.Stream(non_blocking=True) for _ in range(3))
    for stream in (first, second, first):
        multiply(stream)
    monkeypatch.setattr(emulated_gpu, "empty", None)  # in a capture it would fail
    third.begin_capture()
    multiply(third)
    third.end_capture()
    assert workspaces[0] == workspaces[2]
    assert len({pointer for pointer, _ in workspaces}) == 3
    assert {size for _, size in workspaces} == {32 << 20}
    fourth = emulated_gpu.cuda.Stream(non_blocking=True)
    fourth.begin_capture()
    with pytest.raises(RuntimeError, match=r"make a plan, or a product on this stream, before capturing it"):
        multiply(fourth)
    fourth.end_capture()


def test_cublas_refuses_or_is_missing(emulated_gpu, make_weight, monkeypatch):
    weight = make_weight(40, 256, "m2v8g-1").to("cuda")
    x = emulated_gpu.zeros((9, 256), np.float16)
    monkeypatch.setattr(Cublas, "status", 13)
    with pytest.raises(RuntimeError, match="cuBLAS refused a product: status 13"):
        codegemm.matmul(x, weight.T, kernel="dense")
    missing = ImportError("libcublas.so.12: cannot open\nand more")
    monkeypatch.setattr(gemm, "_cublas", Mock(side_effect=missing))
    choice.choose_anew()
    reason = r"cuBLAS is missing: libcublas.so.12: cannot open; pip install 'codegemm\[cuda12\]' \(or cuda13\)"
    for kernel in ("dense", "dequant_dense", "aqlm"):
        with pytest.raises(codegemm.KernelError, match=reason):
            codegemm.matmul(x, weight.T, kernel=kernel)
    assert codegemm.matmul(x[:6], weight.T, kernel="aqlm").shape == (6, 40)
