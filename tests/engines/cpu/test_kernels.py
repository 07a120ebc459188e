"""Every CPU kernel against the float64 definition: configurations, shapes, dtypes, NaNs, threads."""

import itertools

import numpy as np
import pytest
from emulator import cases
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import errors
from support.cpu import check_products, check_threads, product, usable
from support.errors import FULL, error

import codegemm
from codegemm import Product, arrays, choice
from codegemm.baselines.cpu.aqlm import MATVEC_ROWS
from codegemm.devices import CPU
from codegemm.engines.cpu import isa
from codegemm.engines.cpu.kernel import CpuKernel
from codegemm.formats import random_weight
from codegemm.formats.format import core_of
from codegemm.formats.hadamard import hadamard, split_length
from codegemm.registry import registered

TOLERANCE = errors.TOLERANCE["cpu"]
DTYPES = ("float16", "bfloat16", "float32", "float64")
COMPILED = {kernel.name for kernel in registered("cpu") if isinstance(kernel, CpuKernel)}
CONFIGS = [
    # rows, columns, configuration, parts
    (320, 512, "m1v4g128", 1),
    (77, 1024, "m2v8g128", 1),
    (33, 7, "m8v1b1g1", 1),
    (50, 96, "m1v3b2g3", 1),
    (100, 180, "m3v5b5g15", 1),
    (300, 96, "m1v4b3g12", 3),
    (31, 528, "m2v11b7g-1", 1),
    (130, 4096, "m2v8g-1", 2),
    (5, 4864, "m1v4g4", 1),
    (3000, 64, "m1v4b6g32", 2),
    (96, 1024, "m1v8b16g-1", 1),
    (65, 512, "m1v16b16g64", 1),
    (20, 96, "m4v6b12g12", 1),
    (17, 390, "m2v13b9g26", 2),
    (130, 390, "m3v13g26", 1),
    (4100, 208, "m2v16b8g16", 1),
    (64, 128, "e8p", 1),
    (384, 1536, "e8p", 1),
    (48, 448, "e8p3", 1),
    (48, 448, "e8p4", 1),
    (77, 1024, "m2v8g128+rotated", 1),
    (300, 96, "m1v4b3g12+rotated8+offsets", 3),
    (33, 30, "m1v3b5g6+rotated1", 1),
    (50, 4864, "m1v4g4+offsets", 1),
    (257, 640, "m2v8g-1+rotated+added", 2),
    (31, 132, "m1v4b4g44+terms3", 1),
    (40, 96, "m1v2b8g24+rotated+added+terms2", 1),
    (20, 96, "m4v6b12g12+rotated+offsets", 1),
    (300, 104, "m1v4b3g8+ordered", 3),
    (45, 96, "m2v8g-1+ordered+rotated+offsets", 1),
]
every_config = pytest.mark.parametrize(("rows", "columns", "config", "parts"), CONFIGS)


@pytest.mark.parametrize("dtype", DTYPES)
@every_config
def test_all_kernels_match_the_definition(rows, columns, config, parts, dtype, make_weight, rng):
    weight = make_weight(rows, columns, config, parts)
    core = core_of(weight.spec)
    is_lattice = isinstance(core, codegemm.E8PSpec)
    half_as_many = dtype in ("bfloat16", "float64") and not cases.ALL  # they differ in how x is read and y written
    for n in (1, 6, 33) if half_as_many else (1, 2, 3, 6, 7, 16, 33):
        names = set(usable(weight, n))
        assert {"reference", "dense", *(["quip"] if is_lattice else ["dequant", "dequant_dense"])} <= names
        assert ("psumbook" in names) == (not is_lattice and core.config.b <= 8)
        check_products(weight, rng.standard_normal((n, columns)).astype(arrays.float_dtype(dtype)), names)


@st.composite
def problems(draw):
    config = codegemm.CodebookConfig(v=draw(st.integers(1, 16)), m=draw(st.integers(1, 8)), b=draw(st.integers(1, 10)))
    groups, per_group = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    g = draw(st.sampled_from((-1, per_group * config.v)))
    config = codegemm.CodebookConfig(v=config.v, m=config.m, b=config.b, g=g)
    rows = draw(st.lists(st.integers(1, 90), min_size=1, max_size=3))
    return rows, groups * per_group * config.v, str(config), draw(st.integers(1, 18)), draw(st.integers(0, 2**31))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems())
@example(([1], 1, "m6v1b1g-1", 1, 12))  # six centroids of one weight that cancel
def test_any_configuration_and_shape(problem):
    rows, columns, config, n, seed = problem
    parts = [random_weight((count, columns), config, seed + i) for i, count in enumerate(rows)]
    weight = codegemm.concat(parts)
    x = np.random.default_rng(seed).standard_normal((n, columns)).astype(np.float32)
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    # Few weights may cancel, and so may the centroids of one: compare with the size of what was added.
    size = np.linalg.norm(np.abs(x).astype(np.float64) @ sum(map(np.abs, cases.by_codebook(weight))).T)
    for name in set(usable(weight, n)) - {"dense_bf16"}:
        y = product(weight, x, name)
        assert np.linalg.norm(y - truth) <= TOLERANCE.get(name, 1e-6) * size, name


@pytest.mark.parametrize("columns", [64 * 12, 64 * 28, 64 * 36, 64 * 52, 64 * 20, 64 * 5 * 12])
def test_quip_with_every_kind_of_hadamard_matrix(columns, make_weight, rng):
    order, _ = split_length(columns)
    assert len(hadamard(order)) == order
    weight = make_weight(16 * 28, columns, "e8p")
    check_products(weight, rng.standard_normal((9, columns)).astype(np.float32), ["quip"])


@pytest.mark.parametrize("config", ["e8p", "e8p3", "e8p4"])
def test_quip_with_numbers_in_place_of_signs(config, make_weight, rng):
    su, sv = rng.standard_normal(448).astype(np.float16), rng.standard_normal(48).astype(np.float32)
    weight = codegemm.E8PWeight(make_weight(48, 448, config).qidxs, su, sv)
    for n in (1, 5, 13):
        check_products(weight, rng.standard_normal((n, 448)).astype(np.float32), usable(weight, n))


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@every_config
def test_the_same_without_a_compiler(rows, columns, config, parts, dtype, make_weight, rng):
    weight = make_weight(rows, columns, config, parts)
    x = rng.standard_normal((3, columns)).astype(dtype)
    with pytest.warns(RuntimeWarning, match=r"no-such-compiler is not there.*install g\+\+"):
        check_products(weight, x, usable(weight, 3))


@pytest.mark.parametrize("name", [each.name for each in isa.available()[1:]])
def test_the_same_on_older_processors(name, monkeypatch, fresh_engine, make_weight, rng):
    """The sources take other branches where there are fewer instructions."""
    monkeypatch.setenv(isa.VARIABLE, name)
    for rows, columns, config, parts in CONFIGS:
        weight = make_weight(rows, columns, config, parts)
        for n, dtype in zip((1, 1, 2, 3, 5, 16, 19), itertools.cycle((np.float16, np.float32))):
            x = rng.standard_normal((n, columns)).astype(dtype)
            check_products(weight, x, set(usable(weight, n)) & COMPILED)


def test_quip_stays_in_range_where_the_result_does(make_weight):
    weight = make_weight(64, 4096, "e8p")
    x = np.where(np.arange(4096) % 2, 1e36, -1e36).astype(np.float32)[None]
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    assert error(product(weight, x, "quip"), truth) <= FULL


@pytest.mark.parametrize("config", ["m1v4g32", "m2v8g-1", "m1v8b12g-1", "e8p"])
@pytest.mark.parametrize("scale", [2.0**-14, 1e4])
def test_large_and_tiny_x(config, scale, make_weight, rng):
    weight = make_weight(64, 256, config)
    x = (scale * rng.uniform(0.5, 1, (4, 256))).astype(np.float16)
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    for name in usable(weight, 4):
        assert error(product(weight, x, name, np.float32), truth) <= TOLERANCE.get(name, FULL), name


@pytest.mark.parametrize(
    "config",
    ["m1v4g32", "m2v8g-1", "m1v8b12g-1", "e8p", "m1v4g32+rotated", "m2v8g-1+ordered+offsets", "m1v4g32+terms2"],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 4, MATVEC_ROWS + 1])
def test_nan_and_infinity_stay_in_their_row_and_never_vanish(config, bad, n, make_weight, rng):
    weight = make_weight(48, 384, config)
    for dtype in (np.float32, np.float16, arrays.bfloat16()):
        x = rng.standard_normal((n, 384)).astype(dtype)
        clean = x.astype(np.float64) @ weight.dequantize(np.float64).T
        x[-1, rng.integers(384)] = bad
        for name in usable(weight, n):
            y = product(weight, x, name)
            assert not np.isfinite(y[-1].astype(np.float32)).any(), name
            if n > 1:
                assert error(y[:-1], clean[:-1]) <= 4e-2, name


@every_config
def test_results_depend_neither_on_threads_nor_on_the_run(rows, columns, config, parts, make_weight, rng):
    weight = make_weight(rows, columns, config, parts)
    for n in (1, 5):
        x = rng.standard_normal((n, columns)).astype(np.float32)
        check_threads(weight, x, set(usable(weight, n)) & COMPILED, (1, 2, 3, 7, 2))


def test_a_plan_for_many_rows_runs_fewer(make_weight, rng):
    for config in ("m1v4g32", "m2v8g-1", "e8p"):
        weight = make_weight(64, 256, config)
        for name in usable(weight, 16):
            bound = codegemm.plan(weight, 16, np.float32, name)
            for n in (16, 9, 6, 1):
                x = rng.standard_normal((n, 256)).astype(np.float32)
                truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
                assert error(bound(x), truth) <= TOLERANCE.get(name, FULL), (name, n)


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
