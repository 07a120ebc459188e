"""Every CPU kernel against the float64 definition, with compilers and processors that have less, and numbers that are
large, tiny or cancel."""

import itertools

import numpy as np
import pytest
from emulator import cases
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import errors
from support.cpu import check_products, product, usable
from support.errors import FULL, error

import codegemm
from codegemm import Product, choice
from codegemm.baselines.cpu.lutgemm import Lutgemm
from codegemm.baselines.cpu.qtip import Qtip
from codegemm.baselines.cpu.quip import Quip
from codegemm.devices import CPU
from codegemm.engines.cpu import Dequant, isa
from codegemm.engines.cpu.kernel import CpuKernel
from codegemm.formats import random_weight
from codegemm.formats.format import core_of
from codegemm.formats.hadamard import hadamard, split_length
from codegemm.registry import registered
from codegemm.testing import check_kernel
from codegemm.testing.problems import PROBLEMS
from codegemm.testing.truth import summands

TOLERANCE = errors.TOLERANCE["cpu"]
COMPILED = [kernel for kernel in registered("cpu") if isinstance(kernel, CpuKernel)]


# Those that others are told apart from: slow, and hardly ever changed.
PLAIN = () if cases.ALL else ("reference", "dense", "torch_fp32", "dense_bf16", "dequant_dense")


@pytest.mark.parametrize("kernel", [each for each in registered("cpu") if each.name not in PLAIN], ids=repr)
def test_every_kernel_keeps_to_the_interface(kernel, rng):
    if kernel.unavailable():
        pytest.skip(kernel.unavailable())
    check_kernel(kernel, seed=int(rng.integers(1 << 31)), tolerance=TOLERANCE.get(kernel.name, FULL))


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("kernel", [Dequant(), Quip(), Qtip(), Lutgemm()], ids=repr)
def test_some_keep_to_it_without_a_compiler(kernel, rng):
    with pytest.warns(RuntimeWarning, match="no-such-compiler is not there"):
        check_kernel(kernel, seed=int(rng.integers(1 << 31)), tolerance=FULL)


def test_which_kernels_take_which_weights(make_weight):
    for problem in PROBLEMS:
        weight = make_weight(*problem)
        core = core_of(weight.spec)
        own = {codegemm.E8PSpec: ["quip"], codegemm.QtipSpec: ["qtip"]}.get(type(core), [])
        for n in (1, 6, 33):
            names = set(usable(weight, n))
            assert {"reference", "dense", *(own or ["dequant", "dequant_dense"])} <= names
            assert ("psumbook" in names) == (not own and core.config.b <= 8)
            assert ("lutgemm" in names) == (not own and core.config.signs)


@st.composite
def problems(draw):
    config = codegemm.CodebookConfig(v=draw(st.integers(1, 16)), m=draw(st.integers(1, 8)), b=draw(st.integers(1, 10)))
    groups, per_group = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    g = draw(st.sampled_from((-1, per_group * config.v)))
    config = codegemm.CodebookConfig(v=config.v, m=config.m, b=config.b, g=g)
    rows = draw(st.lists(st.integers(1, 90), min_size=1, max_size=3))
    return rows, groups * per_group * config.v, str(config), draw(st.integers(1, 35)), draw(st.integers(0, 2**31))


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(problems())
@example(([1], 1, "m6v1b1g-1", 1, 12))  # six centroids of one weight that cancel
def test_any_configuration_and_shape(problem):
    rows, columns, config, n, seed = problem
    parts = [random_weight((count, columns), config, seed + i) for i, count in enumerate(rows)]
    weight = codegemm.concat(parts)
    x = np.random.default_rng(seed).standard_normal((n, columns)).astype(np.float32)
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    # Few weights may cancel, and so may the centroids of one: compare with the size of what was added.
    size = np.linalg.norm(np.abs(x).astype(np.float64) @ sum(map(np.abs, summands(weight))).T)
    for name in set(usable(weight, n)) - {"dense_bf16"}:
        y = product(weight, x, name)
        assert np.linalg.norm(y - truth) <= TOLERANCE.get(name, 1e-6) * size, name


@pytest.mark.parametrize("columns", [64 * 12, 64 * 28, 64 * 36, 64 * 52, 64 * 20, 64 * 5 * 12])
@pytest.mark.parametrize(("kernel", "config"), [("quip", "e8p"), ("qtip", "qtip3")])
def test_every_kind_of_hadamard_matrix(kernel, config, columns, make_weight, rng):
    order, _ = split_length(columns)
    assert len(hadamard(order)) == order
    weight = make_weight(16 * 28, columns, config)
    check_products(weight, rng.standard_normal((9, columns)).astype(np.float32), [kernel])


@pytest.mark.parametrize("config", ["e8p", "e8p3", "e8p4", "qtip", "qtip3", "qtip4"])
def test_numbers_in_place_of_signs(config, make_weight, rng):
    su, sv = rng.standard_normal(448).astype(np.float16), rng.standard_normal(96).astype(np.float32)
    signed = make_weight(96, 448, config)
    weight = type(signed)(**{**signed.arrays, "SU": su, "SV": sv})
    for n in (1, 5, 13):
        check_products(weight, rng.standard_normal((n, 448)).astype(np.float32), usable(weight, n))


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_same_without_a_compiler(problem, dtype, make_weight, rng):
    weight = make_weight(*problem)
    x = rng.standard_normal((3, problem.columns)).astype(dtype)
    with pytest.warns(RuntimeWarning, match=r"no-such-compiler is not there.*install g\+\+"):
        check_products(weight, x, usable(weight, 3))


@pytest.mark.parametrize("name", [each.name for each in isa.available()[1:]])
def test_the_same_on_older_processors(name, monkeypatch, fresh_engine, make_weight, rng):
    """The sources take other branches where there are fewer instructions."""
    monkeypatch.setenv(isa.VARIABLE, name)
    names = {kernel.name for kernel in COMPILED}
    for problem in PROBLEMS:
        weight = make_weight(*problem)
        for n, dtype in zip((1, 1, 2, 3, 5, 16, 19), itertools.cycle((np.float16, np.float32))):
            x = rng.standard_normal((n, problem.columns)).astype(dtype)
            check_products(weight, x, names & set(usable(weight, n)))


@pytest.mark.parametrize("left", [1, 10, 11, 15])
@pytest.mark.parametrize("kernel", ["psumbook", "psumbook_fast"])
def test_rows_beyond_sixteen_are_multiplied_as_if_they_were_alone(kernel, left, make_weight, rng):
    """By tables of their own where they are few, whatever the sixteen before them took."""
    weight = make_weight(300, 512, "m2v8g128")
    x = rng.standard_normal((32 + left, 512)).astype(np.float32)
    parts = [
        codegemm.plan(weight, end - first, kernel=kernel)(x[first:end])
        for first, end in ((0, 16), (16, 32), (32, 32 + left))
    ]
    together = codegemm.plan(weight, 32 + left, kernel=kernel)(x)
    assert np.array_equal(together, np.concatenate(parts))


@pytest.mark.parametrize(("kernel", "config"), [("quip", "e8p"), ("qtip", "qtip")])
def test_rotations_stay_in_range_where_the_result_does(kernel, config, make_weight):
    weight = make_weight(64, 4096, config)
    x = np.where(np.arange(4096) % 2, 1e36, -1e36).astype(np.float32)[None]
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    assert error(product(weight, x, kernel), truth) <= FULL


@pytest.mark.parametrize("config", ["m1v4g32", "m2v8g-1", "m1v8b12g-1", "q2g32", "e8p", "qtip"])
@pytest.mark.parametrize("scale", [2.0**-14, 1e4])
def test_large_and_tiny_x(config, scale, make_weight, rng):
    weight = make_weight(64, 256, config)
    x = (scale * rng.uniform(0.5, 1, (4, 256))).astype(np.float16)
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    for name in usable(weight, 4):
        assert error(product(weight, x, name, np.float32), truth) <= TOLERANCE.get(name, FULL), name


def test_costs_are_counted(make_weight):
    rows, columns = 512, 1024
    weight = make_weight(rows, columns, "m2v8g128")
    wanted = Product.of(weight.spec, 2, np.float32)
    for name in usable(weight, 2):
        kernel = choice.select(wanted, CPU, name)
        cost = kernel.cost(wanted, CPU)
        assert cost.bytes_read >= rows * columns // 4 + 2 * columns * 4
        assert cost.bytes_written >= 2 * rows * 4
        assert kernel.estimate(wanted, CPU) > 0
