"""A bias is added before y is rounded to its dtype, and only then."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.cpu import usable
from support.kernels import Twice, joined

import codegemm
from codegemm import arrays, operands
from codegemm.formats import random_weight
from codegemm.registry import registered

CONFIGS = ("m1v4g16", "m1v8b11g-1", "m2v4b4g32+rotated16+offsets", "m1v4b4g32+terms2", "q2g16", "e8p", "qtip")
DTYPES = ("float16", "bfloat16", "float32", "float64")


def rounded(sums, dtype):
    """Sums of float64 in a dtype, and the distance of its numbers there."""
    y = sums.astype(arrays.float_dtype(dtype))
    return y.astype(np.float64), np.spacing(abs(y)).astype(np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", CONFIGS)
def test_every_kernel_rounds_once(config, dtype, rng):
    """The product's own error of float32, and half a step of the dtype's for the one rounding: where the bias is large
    and of the other sign, a sum that was rounded before it would be off by more."""
    weight = random_weight((64, 128), config, 1)
    for n in (1, 3, 5, 33, 130):
        x = rng.standard_normal((n, 128)).astype(arrays.float_dtype(dtype))
        product = x.astype(np.float64) @ weight.dequantize(np.float64).T
        bias = (-0.9 * product[0] + rng.standard_normal(64)).astype(np.float32)
        exact, step = rounded(product + bias, dtype)
        own = 4e-4 * np.abs(product).max()
        for name in sorted(set(usable(weight, n)) - {"dense_bf16", "psumbook_fast", "dequant_fast"}):
            for y in (
                codegemm.linear(x, weight, bias, kernel=name),
                codegemm.plan(weight, n, dtype, name, bias=bias)(x),
                codegemm.plan(weight, n + 2, dtype, name, bias=bias)(x, out=np.full((64, n), np.nan, x.dtype).T),
            ):
                assert y.dtype == x.dtype
                assert (abs(y.astype(np.float64) - exact) <= own + step).all(), (name, n)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_added_in_float32(dtype, rng):
    """Sums beyond the largest half come back into range; y in float32 gets them whole."""
    weight = codegemm.CodebookWeight(
        np.zeros((16, 32, 1), np.uint8), np.full((1, 256, 4), 6.0, np.float16), np.full((16, 1), 100.0, np.float16)
    )
    x, bias = np.ones((2, 128), arrays.float_dtype(dtype)), np.full(16, -20000.0, np.float32)
    for name in set(usable(weight, 2)) - {"dense_bf16"}:
        y = codegemm.linear(x, weight, bias, kernel=name)
        assert (y.astype(np.float32) == np.float32(56800).astype(y.dtype)).all(), name
    plan = codegemm.plan(weight, 2, dtype, bias=bias)
    assert (plan(x, out=np.empty((2, 16), np.float32)) == 56800).all()


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.filterwarnings("ignore:CPU kernels run in NumPy")
def test_without_a_compiler_too(rng):
    weight = random_weight((48, 128), "m2v4g32+offsets", 1)
    x, bias = rng.standard_normal((2, 128)).astype(np.float16), rng.standard_normal(48)
    expected = x.astype(np.float64) @ weight.dequantize(np.float64).T + bias
    for name in set(usable(weight, 2)) - {"dense_bf16"}:
        y = codegemm.linear(x, weight, bias, kernel=name)
        assert np.allclose(y.astype(np.float64), expected, rtol=1e-3, atol=1e-3 * abs(expected).max()), name


def test_kernels_of_third_parties_need_not_know(rng):
    weight = random_weight((48, 128), "m1v4g16", 1)
    x, bias = rng.standard_normal((2, 128)).astype(np.float16), rng.standard_normal(48).astype(np.float16)
    exact, step = rounded(x.astype(np.float64) @ weight.dequantize(np.float64).T + bias, "float16")
    with joined(Twice()):
        plan = codegemm.plan(weight, 4, np.float16, "twice", bias=bias)
        out = np.empty((2, 48), np.float16)
        for y in (codegemm.linear(x, weight, bias, kernel="twice"), plan(x), plan(x, out=out)):
            assert (abs(y.astype(np.float64) - exact) <= step).all()


def test_a_plan_keeps_its_own_copy(rng):
    weight = random_weight((48, 128), "m1v4g16", 1)
    x, bias = rng.standard_normal((2, 128)).astype(np.float32), rng.standard_normal(48).astype(np.float32)
    plan = codegemm.plan(weight, 2, bias=bias)
    before = plan(x)
    bias[:] = np.nan
    assert np.array_equal(plan(x), before)


def test_a_plan_can_be_copied(rng):
    plan = codegemm.plan(random_weight((48, 128), "m1v4g16", 1), 2)
    x = rng.standard_normal((2, 128)).astype(np.float32)
    for each in (copy.deepcopy(plan), copy.copy(plan)):
        assert each is not plan
        assert np.array_equal(each(x), plan(x))


def test_a_deep_copy_reads_arrays_of_its_own(rng):
    """Of a plan that multiplied before, too."""
    x, bias = rng.standard_normal((2, 128)).astype(np.float32), rng.standard_normal(48).astype(np.float32)
    plan = codegemm.plan(random_weight((48, 128), "m1v4g16", 1), 2, kernel="psumbook", bias=bias)
    before = plan(x)
    twin = copy.deepcopy(plan)
    plan.prepared.arguments.arrays["scales"][...] = plan.bias[...] = 0
    assert not plan(x).any()
    assert np.array_equal(twin(x), before)


@pytest.mark.parametrize("kernel", ["dequant", "dense"])
def test_a_plan_cannot_be_pickled(kernel):
    """Whatever its kernel keeps of a weight; the weight can."""
    plan = codegemm.plan(random_weight((48, 128), "m1v4g16", 1), kernel=kernel)
    with pytest.raises(TypeError, match="a plan can't be pickled: make one from the weight"):
        pickle.dumps(plan)
    assert pickle.loads(pickle.dumps(plan.weight)) == plan.weight


def test_a_bias_may_lie_anywhere(rng):
    weight = random_weight((48, 128), "m1v4g16", 1)
    x, bias = rng.standard_normal((2, 128)).astype(np.float32), rng.standard_normal(48).astype(np.float32)
    crooked = np.frombuffer(b"\0" + bias.tobytes(), np.uint8)[1:].view(np.float32)
    assert not crooked.flags.aligned
    assert operands.summand(crooked, x.dtype).flags.aligned
    for each in (crooked, np.repeat(bias, 2)[::2], bias.astype(">f4")):
        assert np.array_equal(codegemm.linear(x, weight, each), codegemm.linear(x, weight, bias))


def test_what_is_no_bias():
    weight, x = random_weight((48, 128), "m1v4g16", 1), np.ones(128, np.float32)
    for call in (lambda bias: codegemm.linear(x, weight, bias), lambda bias: codegemm.plan(weight, bias=bias)):
        with pytest.raises(ValueError, match=r"bias: shape \(47,\), must be \(48,\)"):
            call(np.ones(47))
        with pytest.raises(TypeError, match="bias: dtype complex128, must be real numbers"):
            call(np.ones(48, complex))
        with pytest.raises(TypeError, match=r"bias is a torch tensor on meta:0 and the weight is on cpu: move one"):
            call(pytest.importorskip("torch").ones(48, device="meta"))


def test_threads_share_a_plan(rng):
    """Each has a workspace of its own."""
    weight = random_weight((512, 2048), "m2v8g128+rotated+offsets", 1)
    plan = codegemm.plan(weight, 4, np.float16)
    xs = rng.standard_normal((16, 4, 2048)).astype(np.float16)
    expected = [plan(x) for x in xs]
    start = threading.Barrier(8)

    def calls(first):
        start.wait()
        return [np.array_equal(plan(xs[i % 16]), expected[i % 16]) for i in range(first, first + 40)]

    with ThreadPoolExecutor(8) as pool:
        assert all(right for each in pool.map(calls, range(8)) for right in each)


def test_every_kernel_of_the_package_adds_a_bias_itself():
    without = {kernel.full_name for kernel in registered() if not kernel.adds_bias}
    assert without == {"cpu:reference", "cpu:torch_fp32", "cpu:dense_bf16"}
