"""Every CPU kernel around a core against the float64 definition, and how a product of an extended weight is chosen."""

import copy
import itertools

import numpy as np
import pytest
from support import errors
from support.cpu import check_threads, product, usable
from support.errors import FULL, error
from support.kernels import joined

import codegemm
from codegemm import Cost, Kernel, KernelError, Product, arrays, tuning
from codegemm.choice import Lookup, choose, select
from codegemm.comparison import measure, runner, sources
from codegemm.comparison.sources import random_weight
from codegemm.devices import CPU
from codegemm.engines.cpu.extended import MULTIPLY_ADD
from codegemm.engines.cpu.kernel import LOOKUP_SECONDS
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.engines.extended import ExtendedKernel
from codegemm.prediction import predict
from codegemm.quantize.progress import Progress
from codegemm.tables import Choice

TOLERANCE = errors.TOLERANCE["cpu"]
CONFIGS = [
    # rows, columns, configuration, parts
    (77, 1024, "m2v8g128+rotated", 1),
    (300, 96, "m1v4b3g12+rotated8+offsets", 3),
    (33, 30, "m1v3b5g6+rotated1", 1),
    (50, 4864, "m1v4g4+offsets", 1),
    (257, 640, "m2v8g-1+rotated+added", 2),
    (31, 132, "m1v4b4g44+terms3", 1),
    (40, 96, "m1v2b8g24+rotated+added+terms2", 1),
    (20, 96, "m4v6b12g12+rotated+offsets", 1),
]


def made(make_weight, rows, columns, config, parts):
    """A random weight; parts > 1: of so many, which share their codebooks' values."""
    weight = make_weight(rows, columns, config)
    bounds = np.linspace(0, rows, parts + 1).astype(int)
    return codegemm.concat([weight[first:end] for first, end in itertools.pairwise(bounds)])


COMPILED = {"psumbook", "psumbook_fast", "dequant", "aqlm"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(("rows", "columns", "config", "parts"), CONFIGS)
def test_all_kernels_match_the_definition(rows, columns, config, parts, dtype, make_weight, rng):
    weight = made(make_weight, rows, columns, config, parts)
    dense = weight.dequantize(np.float64)
    for n in (1, 3, 16, 40):
        x = rng.standard_normal((n, columns)).astype(arrays.float_dtype(dtype))
        truth = x.astype(np.float64) @ dense.T
        names = usable(weight, n)
        assert {"reference", "dense", "dequant", "dequant_dense"} <= set(names)
        assert ("psumbook" in names) == (weight.spec.core.config.b <= 8)
        for name in names:
            wide = "float32" if x.dtype.itemsize == 2 else x.dtype
            assert error(product(weight, x, name, wide), truth) <= TOLERANCE.get(name, FULL), (name, n)


@pytest.mark.filterwarnings("ignore:CPU kernels run in NumPy")
@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(("rows", "columns", "config", "parts"), CONFIGS)
def test_the_same_without_a_compiler(rows, columns, config, parts, make_weight, rng):
    weight = made(make_weight, rows, columns, config, parts)
    for dtype in (np.float16, np.float64):
        x = rng.standard_normal((3, columns)).astype(dtype)
        truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
        for name in set(usable(weight, 3)) - {"dense_bf16"}:
            y = product(weight, x, name, np.float32 if dtype == np.float16 else dtype)
            assert error(y, truth) <= TOLERANCE.get(name, FULL), name


@pytest.mark.parametrize("config", ["m1v4g32+rotated", "m2v8g-1+rotated+offsets", "m1v4g32+offsets"])
def test_results_depend_neither_on_threads_nor_on_the_run(config, make_weight, rng):
    weight = make_weight(600, 384, config)
    x = rng.standard_normal((5, 384)).astype(np.float32)
    check_threads(weight, x, set(usable(weight, 5)) & COMPILED, (1, 3, 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("config", ["m1v4g32+rotated", "m2v8g-1+offsets", "m1v4g32+terms2"])
def test_nan_and_infinity_stay_in_their_row_and_never_vanish(config, bad, make_weight, rng):
    weight = make_weight(48, 384, config)
    for dtype in (np.float32, np.float16):
        x = rng.standard_normal((4, 384)).astype(dtype)
        clean = x.astype(np.float64) @ weight.dequantize(np.float64).T
        x[-1, rng.integers(384)] = bad
        for name in usable(weight, 4):
            y = product(weight, x, name)
            assert not np.isfinite(y[-1]).any(), name
            assert error(y[:-1], clean[:-1]) <= 4e-2, name


def test_rotated_halves_do_not_overflow(make_weight):
    weight = make_weight(16, 4096, "m1v4g128+rotated")
    x = (6e4 * weight.signs)[None].astype(np.float16)  # all of it in one number of x'
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    for name in set(usable(weight, 1)) - {"dense_bf16", "psumbook_fast"}:
        assert error(product(weight, x, name, np.float32), truth) <= 1e-3, name


def test_products_plans_and_warmup(make_weight, rng):
    weight = make_weight(48, 96, "m1v4g24+rotated+offsets")
    x = rng.standard_normal((2, 3, 96)).astype(np.float32)
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    assert error(codegemm.matmul(x, weight.T), truth) <= 2e-4
    assert error(codegemm.linear(x, weight, np.zeros(48)), truth) <= 2e-4
    bound = codegemm.plan(weight, 16)
    assert bound.kernel is select(Product.of(weight.spec, 16, np.float32), CPU)
    out = np.empty((6, 48), np.float32)
    assert error(bound(x.reshape(6, 96), out), truth.reshape(6, 48)) <= 2e-4
    bound.prepared = copy.deepcopy(bound.prepared)
    assert error(bound(x[0, 0]), truth[0, 0]) <= 2e-4
    codegemm.warmup([weight.spec, (48, 96)], [1, 16], "m1v4g24+rotated+offsets", np.float32, "cpu")
    with pytest.raises(KernelError, match="'quip' can't run here: it multiplies E8PWeights"):
        codegemm.plan(weight, 1, kernel="quip")


class Mine(Kernel):
    """Somebody else's kernel, which knows CodebookWeights alone."""

    name = "mine"
    engine = "cpu"
    weights = codegemm.CodebookWeight

    def refuses(self, product, device):
        return None if isinstance(product.spec, codegemm.CodebookSpec) and product.n <= 4 else "no"

    def prepare(self, weight, device):
        return weight.codebooks, weight.dequantize(np.float64)

    def run(self, prepared, x, out, workspace, stream):
        assert len(workspace) >= 64
        out[...] = x @ prepared[1].T

    def workspace(self, product, device):
        return 64

    def cost(self, product, device):
        return Cost(product.spec.packed_bits // 8, 0)


def test_a_third_partys_kernel_gets_the_core(make_weight, rng):
    with joined(Mine()):
        for config in ("m1v4g24+rotated+offsets", "m1v4g24+offsets", "m1v4g24+terms2"):
            weight = make_weight(48, 96, config)
            x = rng.standard_normal((3, 96))
            y = codegemm.matmul(x, weight.T, kernel="mine")
            assert error(y, x @ weight.dequantize(np.float64).T) <= FULL
            with pytest.raises(KernelError, match="'mine' can't run here: no"):
                codegemm.matmul(np.ones((5, 96)), weight.T, kernel="mine")


def test_a_cores_tables_count_where_there_are_none_for_the_weight():
    core = Lookup("m1v4g128", (64, 96), 4, "float16")
    product = Lookup("m1v4g128+rotated", (64, 96), 4, "float16", core)
    tuned = [
        Choice("m1v4g128", (64, 96), (4, 4), "float16", "b"),
        Choice(product.weights, (64, 96), (4, 4), "half", "c"),
    ]
    times = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert choose(product, times) == "a"
    assert choose(product, times, tuned) == choose(product, times, (), tuned[:1]) == "b"
    own = Choice("m1v4g128+rotated", (64, 96), (4, 4), "float16", "c")
    assert choose(product, times, [*tuned, own]) == choose(product, times, (), [*tuned, own]) == "c"
    assert choose(product, times, [own], tuned) == "c"


def test_costs_count_what_is_around_the_core():
    spec = random_weight((512, 1024), "m2v8g128+rotated+offsets").spec
    wanted, core = Product.of(spec, 2, np.float16), Product.of(spec.core, 2, np.float32)
    for name in ("psumbook", "dequant"):
        kernel = select(wanted, CPU, name)
        assert isinstance(kernel, ExtendedKernel)
        inner = kernel.inner.cost(core, CPU)
        cost = kernel.cost(wanted, CPU)
        x, y, sums, addends = 2 * 1024, 2 * 512, 2 * 8, 8 * 512
        assert cost.bytes_read == inner.bytes_read + 2 * x + 4 * (1024 + y + sums + addends)
        assert cost.bytes_written == 4 * (y + x + sums) + 2 * y
        assert kernel.bits_per_weight(spec) == pytest.approx(spec.bits_per_weight)
        # Adding groups up and rotating, in terms of what was measured of a lookup.
        around = LOOKUP_SECONDS * MULTIPLY_ADD * 2 * (1024 * 10 + 1024 + 512 * 8)
        assert kernel.estimate(wanted, CPU) == pytest.approx(kernel.inner.estimate(core, CPU) + around)


def test_random_weights_are_tuned_compared_and_predicted(monkeypatch):
    monkeypatch.setattr(measure, "machine", lambda engine: measure.Machine(engine, "", 1, 1e10))
    config = "m1v4g32+rotated+offsets"
    [case] = [sources.shape_case((64, 128), [config])]
    [found] = tuning._measure(case.weight(config), [1], np.dtype(np.float32), 0)
    assert found.choice.weights == config
    assert set(found.seconds) == {"psumbook", "dequant"}
    kernels = measure.compared_kernels("cpu", ["psumbook", "dense", "aqlm"])
    result = runner.run([case], kernels, [2], "cpu", 0, Progress("", False), [""])
    assert {row.kernel for row in result.rows} == {"psumbook", "dense"}
    assert all(row.error < 1e-3 and row.config in ("", config) for row in result.rows)
    rows = predict(KNOWN["h100"], [(4096, 4096)], ["m2v8g128", "m2v8g128+rotated"], [1])
    times = {(row.kernel, row.config): row.seconds for row in rows}
    assert times["psumbook", "m2v8g128"] < times["psumbook", "m2v8g128+rotated"]
    assert sum(row.chosen for row in rows) == 2
