"""matmul, linear, plan and the array protocols mean what NumPy means."""

import functools
import gc
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cpu import usable
from support.kernels import joined

import codegemm
from codegemm import Kernel, KernelError, arrays
from codegemm.engines.cpu import Psumbook
from codegemm.formats import random_weight

WEIGHT = random_weight((24, 32), "m1v4g16")
DENSE = WEIGHT.dequantize(np.float64)


def close(y, truth, dtype=np.float32):
    """Within the rounding of the result's dtype, or that of a table's entries."""
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2}.get(arrays.float_dtype(dtype).name, 4e-4)
    return np.allclose(
        np.asarray(y, np.float64), truth, rtol=tolerance, atol=tolerance * max(1, np.abs(truth).max(initial=0))
    )


@given(
    st.lists(st.integers(0, 3), max_size=3), st.sampled_from(["float16", "bfloat16", "float32", "float64"]), st.data()
)
def test_any_leading_shape_dtype_and_stride(leading, dtype, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x = rng.standard_normal((*leading, 32)).astype(arrays.float_dtype(dtype))
    how = data.draw(st.sampled_from(["plain", "fortran", "reversed", "every second"]))
    if how == "fortran":
        x = np.asfortranarray(x)
    elif how == "reversed":
        x = x[..., ::-1]
    elif how == "every second":
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    truth = x.astype(np.float64) @ DENSE.T
    for y in (codegemm.matmul(x, WEIGHT.T), x @ WEIGHT.T, np.matmul(x, WEIGHT.T), codegemm.linear(x, WEIGHT)):
        assert y.shape == truth.shape
        assert y.dtype == x.dtype
        assert close(y, truth, dtype)
    bound = codegemm.plan(WEIGHT, max(1, truth.size // 24), dtype)
    assert close(bound(x), truth, dtype)


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64)])
def test_in_place(shape, make_weight, rng):
    weight, x = make_weight(64, 64, "m1v4g16"), rng.standard_normal(shape).astype(np.float32)
    expected, before = x @ weight.T, x
    x @= weight.T
    assert x is before
    assert np.array_equal(x, expected)


@given(st.lists(st.integers(0, 3), max_size=2), st.integers(0, 5), st.booleans())
def test_weight_on_the_left(leading, columns, vector):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32,) if vector else (*leading, 32, columns)).astype(np.float32)
    truth = DENSE @ x.astype(np.float64)
    for y in (codegemm.matmul(WEIGHT, x), WEIGHT @ x, np.matmul(WEIGHT, x)):
        assert y.shape == truth.shape
        assert close(y, truth)
    out = np.full(truth.shape, np.nan, np.float32)
    assert codegemm.matmul(WEIGHT, x, out=out) is out
    assert close(out, truth)


def multiply(x, **named):
    return codegemm.matmul(x, WEIGHT.T, **named)


def test_lists_are_arrays():
    assert close(multiply([1.0] * 32), DENSE.sum(1))


def test_other_byte_order():
    x = np.arange(32, dtype=">f4")
    assert close(x @ WEIGHT.T, x.astype(np.float64) @ DENSE.T, np.float32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_out(dtype, rng):
    dtype = arrays.float_dtype(dtype)
    x = rng.standard_normal((5, 32)).astype(dtype)
    truth = x.astype(np.float64) @ DENSE.T
    for out_dtype in {dtype, np.dtype(np.float32) if dtype.itemsize == 2 else dtype}:
        for out in (np.empty((5, 24), out_dtype), np.empty((24, 5), out_dtype).T, np.empty((10, 24), out_dtype)[::2]):
            for call in (multiply, lambda x, out: np.matmul(x, WEIGHT.T, out=out), codegemm.plan(WEIGHT, 5, dtype)):
                out[...] = np.nan
                assert call(x, out=out) is out
                assert close(out, truth, out_dtype)


def test_out_may_overlap_x(rng):
    square = random_weight((32, 32), "m1v4g16")
    x = rng.standard_normal((4, 32)).astype(np.float32)
    truth = x.astype(np.float64) @ square.dequantize(np.float64).T
    for name in set(usable(square, 4)) - {"dense_bf16", "psumbook_fast", "dequant_fast"}:
        named = functools.partial(codegemm.matmul, b=square.T, kernel=name)
        for call in (named, codegemm.plan(square, 4, kernel=name)):
            overlapping = x.copy()
            call(overlapping, out=overlapping)
            assert close(overlapping, truth), name


@pytest.mark.parametrize("size", [1, 3])
def test_out_and_x_of_other_byte_orders_and_misaligned(size, rng):
    x = rng.standard_normal((size, 32)).astype(np.float32)
    truth = x.astype(np.float64) @ DENSE.T
    memory = np.zeros(size * 24 * 4 + 1, np.uint8)
    crooked_x = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not crooked_x.flags.aligned
    for out in (np.empty((size, 24), ">f4"), memory[1:].view(np.float32).reshape(size, 24)):
        for call in (codegemm.plan(WEIGHT, size), multiply):
            for operand in (x, x.astype(">f4"), crooked_x):
                out[...] = 0
                call(operand, out=out)
                assert close(out, truth)
    assert codegemm.plan(WEIGHT, size, ">f4").dtype == np.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_rounded_to_nearest_even(dtype, rng):
    """The compiled conversions of results agree with NumPy's to the bit."""
    dtype = arrays.float_dtype(dtype)
    for name in ("psumbook", "dequant"):
        for n in (1, 5):
            x = rng.standard_normal((n, 32)).astype(dtype)
            exact = codegemm.matmul(x, WEIGHT.T, out=np.empty((n, 24), np.float32), kernel=name)
            assert np.array_equal(codegemm.matmul(x, WEIGHT.T, kernel=name), exact.astype(dtype))
    identity = codegemm.CodebookWeight(
        np.zeros((1, 1, 1), np.uint8), np.full((1, 2, 1), 1, np.float16), np.ones((1, 1), np.float16)
    )
    values = rng.integers(0, 1 << 32, 2000, np.uint32).view(np.float32)
    ties = (rng.integers(0, 1 << 15, 2000, np.uint32) << 16 | 0x8000).view(np.float32)
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519, 65520, 1e-8, 3.4e38, 2.0**-24], np.float32)
    for value in np.concatenate([values[:500], ties[:500], edges]):
        x = np.array([[value]], np.float32)
        with np.errstate(over="ignore"):
            y = codegemm.matmul(x, identity.T, kernel="dequant")
            assert np.array_equal(y, x, equal_nan=True)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda x: multiply(x[:, :31]), ValueError, r"x: shape \(3, 31\).*in_features=32"),
        (lambda x: multiply(x[0, 0]), ValueError, r"x: shape \(\)"),
        (lambda x: multiply(x.astype(np.int32)), TypeError, "x: dtype int32, must be one of float16"),
        (lambda x: multiply(x.astype(complex)), TypeError, "x: dtype complex128"),
        (lambda x: multiply(["a"] * 32), TypeError, "x: dtype"),
        (lambda x: codegemm.matmul(x, WEIGHT), TypeError, r"x @ w.T or w @ X"),
        (lambda x: x @ WEIGHT, TypeError, r"x @ w.T or w @ X"),
        (lambda x: WEIGHT.T @ x, TypeError, r"x @ w.T or w @ X"),
        (lambda x: WEIGHT @ WEIGHT.T, TypeError, r"x @ w.T or w @ X"),
        (lambda x: multiply(x, out=np.empty((3, 23), np.float32)), ValueError, r"out: shape \(3, 23\)"),
        (lambda x: multiply(x, out=np.empty((3, 24))), TypeError, "out: dtype float64, must be float32"),
        (
            lambda x: multiply(x.astype(np.float16), out=np.empty((3, 24))),
            TypeError,
            "out: dtype float64, must be float16 or float32 for float16 x",
        ),
        (lambda x: multiply(x, out=[[0.0] * 24] * 3), ValueError, "out: shape"),
        (lambda x: multiply(x, out=np.broadcast_to(x[0, :24], (3, 24))), ValueError, "out: is read-only"),
        (lambda x: multiply(x, precision=["fast"]), ValueError, r"precision=\['fast'\]: must be one of full, fast"),
        (lambda x: multiply(x, kernel="nothing"), KernelError, "kernel 'nothing' is unknown; known: "),
        (lambda x: multiply(x, kernel="quip"), KernelError, "it multiplies E8PWeights"),
        (lambda x: multiply(x, kernel="aqlm"), KernelError, "g=16: AQLM has one scale a row"),
        (lambda x: np.matmul(x, WEIGHT.T, dtype=np.float64), TypeError, r"takes out= only, got \['dtype'\]"),
        (lambda x: np.matmul(x, WEIGHT.T, axes=[(0, 1)] * 3), TypeError, r"takes out= only, got \['axes'\]"),
        (lambda x: np.add(x, WEIGHT.T), TypeError, "add"),
        (lambda x: np.asarray(WEIGHT), TypeError, r"call dequantize\(\)"),
        (lambda x: np.asarray(WEIGHT.T), TypeError, r"TransposedWeight.*call dequantize\(\)"),
        (lambda x: codegemm.linear(x, DENSE), TypeError, "linear: w is ndarray"),
        (lambda x: WEIGHT @ x.T[:31], ValueError, r"X: shape \(31, 3\), its last axis but one must be in_features=32"),
        (
            lambda x: codegemm.matmul(WEIGHT, x.T, out=np.empty((24, 6), np.float32)),
            ValueError,
            r"out: shape \(24, 6\), must be \(24, 3\)",
        ),
        (lambda x: codegemm.linear(x, WEIGHT, np.ones(24, complex)), TypeError, "bias: dtype complex128, must be real"),
        (lambda x: codegemm.plan(WEIGHT, True), ValueError, "n=True: must be an integer"),
        (lambda x: codegemm.kernels(DENSE), TypeError, "kernels: w is ndarray"),
        (lambda x: codegemm.kernels(WEIGHT, 1.5), ValueError, r"n=1\.5: must be an integer"),
        (lambda x: codegemm.linear(x, WEIGHT, np.ones(23)), ValueError, r"bias: shape \(23,\), must be \(24,\)"),
        (lambda x: codegemm.plan(DENSE), TypeError, "plan: w is ndarray"),
        (lambda x: codegemm.plan(WEIGHT, 0), ValueError, "n=0: must be an integer of at least 1"),
        (lambda x: codegemm.plan(WEIGHT, 1, np.int8), TypeError, "dtype int8: must be one of"),
        (lambda x: codegemm.plan(WEIGHT, 2)(x), ValueError, "x: 3 rows, this plan is for at most 2"),
        (
            lambda x: codegemm.plan(WEIGHT, 3)(x.astype(np.float16)),
            TypeError,
            "x: dtype float16, this plan is for float32",
        ),
    ],
)
def test_mistakes_are_named(call, kind, message, rng):
    with pytest.raises(kind, match=message):
        call(rng.standard_normal((3, 32)).astype(np.float32))


def test_linear_adds_the_bias(rng):
    x, bias = rng.standard_normal((2, 3, 32)).astype(np.float32), rng.standard_normal(24)
    assert close(codegemm.linear(x, WEIGHT, bias), x.astype(np.float64) @ DENSE.T + bias)
    assert close(codegemm.linear(x, WEIGHT, list(range(24))), x.astype(np.float64) @ DENSE.T + np.arange(24))
    half = codegemm.linear(x.astype(np.float16), WEIGHT, bias)
    assert half.dtype == np.float16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("config", ["m1v4g32", "m1v8b12g-1", "q2g32", "e8p", "qtip"])
def test_a_plan_with_out_allocates_nothing(dtype, config, make_weight):
    weight = make_weight(512, 1024, config)
    dtype = arrays.float_dtype(dtype)
    for name in ("auto", "dense", "dequant_dense", "aqlm"):
        try:
            bound = codegemm.plan(weight, 8, dtype, name)
        except KernelError:
            continue
        x, out = np.ones((8, 1024), dtype), np.empty((8, 512), dtype)
        strided_x, strided_out = np.ones((8, 2048), dtype)[:, ::2], np.empty((512, 8), dtype).T
        for arguments in ((x, out), (strided_x, strided_out)):
            bound(arguments[0], out=arguments[1])
            tracemalloc.start()
            bound(arguments[0], out=arguments[1])
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            # Python's own small objects; an x in float32 alone would be 32 KiB.
            assert peak < 8192, (name, peak)


def test_a_plan_runs_what_a_kernel_runs(make_weight):
    """One of its own way, too, around the compiled function of the package's."""

    class Sevens(Psumbook):
        name = "sevens"

        def run_compiled(self, function, prepared, x, out, workspace, bias=None):
            out[...] = 7

    weight = make_weight(64, 128, "m1v4g32")
    out = np.empty((1, 64), np.float32)
    with joined(Sevens()):
        codegemm.plan(weight, kernel="sevens")(np.ones((1, 128), np.float32), out=out)
    assert (out == 7).all()


def test_several_threads_multiply_by_one_weight(make_weight, rng):
    weight = make_weight(512, 512, "m2v8g128")
    inputs = [rng.standard_normal((3, 512)).astype(np.float32) for _ in range(8)]
    expected = [codegemm.matmul(x, weight.T) for x in inputs]
    fresh = weight[:]

    def is_right(x, y):
        return all(np.array_equal(codegemm.matmul(x, fresh.T), y) for _ in range(30))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_right, inputs, expected))


def prepared(weight):
    """What kernels made of a weight."""
    return {key: value for key, value in weight.memo.items() if isinstance(key[0], Kernel)}


def test_prepared_forms_are_made_once_and_freed_with_the_weight(make_weight):
    for config in ("m1v4g32", "q2g32", "e8p", "qtip"):
        weight = make_weight(64, 64, config)
        x = np.ones(64, np.float32)
        for name in usable(weight, 1):
            codegemm.matmul(x, weight.T, kernel=name)
        held = prepared(weight)
        assert len(held) >= 4
        codegemm.matmul(x, weight.T)
        assert {key: id(value) for key, value in prepared(weight).items()} == {k: id(v) for k, v in held.items()}
        gone = weakref.ref(weight)
        gc.disable()
        try:
            del weight, held
            assert gone() is None  # at once: nothing prepared refers back
        finally:
            gc.enable()


def test_a_wrong_out_is_told_before_anything_is_prepared(make_weight):
    weight, x = make_weight(64, 64, "m1v4g32"), np.ones((1, 64), np.float32)
    for out in (np.empty((1, 63), np.float32), np.empty((1, 64), np.float16)):
        with pytest.raises((ValueError, TypeError), match="out: "):
            codegemm.matmul(x, weight.T, out=out)
    assert not prepared(weight)


@pytest.mark.parametrize("kernel", [["psumbook"], 1, None])
def test_kernel_must_be_a_name(kernel, make_weight):
    weight, x = make_weight(16, 64, "m1v4"), np.ones((1, 64), np.float32)
    for call in (lambda: codegemm.matmul(x, weight.T, kernel=kernel), lambda: codegemm.plan(weight, kernel=kernel)):
        with pytest.raises(TypeError, match=r"kernel=.*: must be a name, like 'psumbook' or 'cpu:psumbook'"):
            call()


def test_a_product_may_be_fast():
    """One kernel for it on the processor; a kernel that is named is taken as it is, and what can't be fast is full."""
    rng = np.random.default_rng(0)
    weight = random_weight((512, 2048), "m1v4g128", 0)
    x = rng.standard_normal((1, 2048)).astype(np.float32)
    truth = x @ weight.dequantize(np.float64).T

    def error(**named):
        return np.linalg.norm(codegemm.matmul(x, weight.T, **named) - truth) / np.linalg.norm(truth)

    assert error() <= 2e-4
    assert 1e-3 < error(precision="fast") <= 1.5e-2
    assert error(precision="fast", kernel="dequant") <= 1e-6
    assert codegemm.plan(weight, 1, precision="fast").kernel.name == "psumbook_fast"
    few_rows = random_weight((64, 4096), "m8v8g-1", 0)  # tables are not worth their building
    assert codegemm.plan(few_rows, 1, precision="fast").kernel.name.removesuffix("_fast") == "dequant"
    lattice = random_weight((64, 128), "e8p", 0)
    assert np.array_equal(codegemm.matmul(x[:, :128], lattice.T, precision="fast"), x[:, :128] @ lattice.T)


def test_cupys_arrays_ask_the_weight():
    """Those of CuPy itself, on host memory: which of its ways to multiply come here at all."""
    cupy = pytest.importorskip("cupy")
    from support.host_cupy import on_gpu

    x = on_gpu(np.ones((3, 32), np.float32))
    for call in (lambda: x @ WEIGHT.T, lambda: np.matmul(x, WEIGHT.T), lambda: WEIGHT @ x.T):
        with pytest.raises(TypeError, match="x is on cuda:0 and the weight is on cpu"):
            call()
    with pytest.raises(TypeError, match="incorrect type"):
        cupy.matmul(x, WEIGHT.T)
