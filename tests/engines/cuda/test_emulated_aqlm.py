"""The CUDA kernels of the AQLM baseline in the emulator: results and counters."""

import numpy as np
import pytest
from emulator import cases, emulate
from emulator.cases import error
from support import errors

import codegemm
from codegemm import arrays
from codegemm.baselines.cuda import aqlm
from codegemm.baselines.cuda.aqlm import MATVEC_ROWS, Aqlm
from codegemm.checkpoints import from_aqlm
from codegemm.engines.cuda import DequantDense, dequant_dense, model
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.formats.codebook import CodebookSpec
from codegemm.kernel import Product
from codegemm.testing.truth import Truth

KERNEL, HALF, H200 = Aqlm(), np.dtype(np.float16), KNOWN["h200"]

TOLERANCE = errors.TOLERANCE["aqlm"]
PUBLISHED = ("m1v8b16g-1", "m2v8g-1", "m1v16b16g-1", "m1v8g-1")
# Every pair of values of every two of these occurs in a case.
AXES = {
    "config": (
        *PUBLISHED, "m3v8b6g-1", "m4v8b7g-1", "m5v8b3g-1", "m6v8b4g-1", "m7v8b1g-1", "m1v16b5g-1", "m2v8b9g-1",
        "m8v8b10g-1",
    ),
    "vectors": (300, 1, 8, 15, 256, 513),
    "rows": (20, 1, 16, 17, 33),
    "n": (1, 2, MATVEC_ROWS),
    "dtype": ("float16", "bfloat16", "float32"),
    "order": emulate.ORDERS,
}  # fmt: skip


def allowed(case):
    """x's dtype matters where x is staged, the same for all configurations: a few have all, to compile less."""
    return case.get("dtype", "float16") == "float16" or case.get("config", PUBLISHED[0]) in PUBLISHED or cases.ALL


CASES = cases.covering(AXES, 200 if cases.ALL else 0, allowed)


def spec_of(case):
    config = codegemm.CodebookConfig.parse(case["config"])
    return CodebookSpec(case["rows"], case["vectors"] * config.v, config, (case["rows"],))


def operands(make_weight, rng, **values):
    """With the first value of every axis where nothing else is said."""
    case = {name: axis[0] for name, axis in AXES.items()} | values
    weight = make_weight(*spec_of(case).shape, case["config"])
    x = rng.standard_normal((case["n"], weight.shape[1])).astype(arrays.float_dtype(case["dtype"]))
    return weight, x


def steps_of(case):
    product = Product.of(spec_of(case), case["n"], arrays.float_dtype(case["dtype"]), np.float32)
    return KERNEL.decide(product, emulate.SMALL_GPU)


def quarters(spec):
    """Phases of eight lanes that one load of 16 bytes in each lane that has codes takes for a row, over all chunks."""
    full, rest = divmod(aqlm.row_lanes(spec), 32)
    return 4 * full + -(-rest // 8)


@pytest.mark.parametrize("case", CASES, ids=cases.name_of)
def test_emulated_products_and_their_counters(case, compiled, make_weight, rng):
    weight, x = operands(make_weight, rng, **case)
    spec, n = weight.spec, len(x)
    y, [report] = emulate.multiply(KERNEL, weight, x, order=case["order"], seed=case["seed"])
    assert error(y, Truth(x, weight)) <= TOLERANCE * (2 if y.size < 64 else 1)

    codes = report.of("load_codes", space="global")
    assert codes.bytes == n * aqlm.code_bytes(spec)
    row_bytes = aqlm.code_bytes(spec) // spec.out_features
    # Rows that do not begin at a sector's start share one with their neighbour.
    assert codes.sectors - codes.least_sectors <= (0 if row_bytes % 512 == 0 else codes.instructions)

    pieces = aqlm.lane_vectors(spec) * spec.config.v // 8  # of 16 bytes of x, in a lane
    fetched = report.of("fetch", space="shared" if aqlm.in_shared_memory(spec) else "global")
    assert fetched.bytes == 16 * n * spec.out_features * aqlm.row_lanes(spec) * pieces * spec.config.m
    # No conflicts: eight lanes at a time.
    wavefronts = n * spec.out_features * quarters(spec) * pieces
    assert report.of("multiply").wavefronts == wavefronts
    staged = report.of("stage_x", "store")
    assert staged.wavefronts == staged.bytes // 128
    if aqlm.in_shared_memory(spec):
        assert fetched.wavefronts == spec.config.m * wavefronts
        staged = report.of("stage_codebooks", "store")
        assert staged.wavefronts == staged.least_wavefronts

    rows = aqlm.rows_per_block(spec.out_features, n, emulate.SMALL_GPU.multiprocessors)
    blocks = n * -(-spec.out_features // rows)
    assert report.events["block barrier"] == blocks * (2 * -(-aqlm.row_lanes(spec) // 32) - 1)


@pytest.mark.parametrize("config", PUBLISHED)
def test_emulated_rows_of_x_are_multiplied_alone(config, make_weight, rng):
    weight, x = operands(make_weight, rng, config=config, n=3)
    together, _ = emulate.multiply(KERNEL, weight, x)
    for row, y in zip(x, together):
        assert np.array_equal(emulate.multiply(KERNEL, weight, row[None])[0][0], y)


@pytest.mark.parametrize("config", PUBLISHED)
def test_emulated_error_is_that_of_sums_in_fp16(config, make_weight, rng):
    weight, x = operands(make_weight, rng, config=config, rows=64)
    y, _ = emulate.multiply(KERNEL, weight, x)
    assert 1e-4 < error(y, Truth(x, weight)) < 6e-4


@pytest.mark.parametrize("name", ["m2b8", "m1b16", "m1b8g8", "m1b12", "m1b16g16"])
def test_emulated_products_of_what_the_original_made(name, golden):
    data = golden("aqlm")
    weight = from_aqlm(*(data[f"{name}_{part}"] for part in ("codes", "codebooks", "scales")))
    y, _ = emulate.multiply(KERNEL, weight, data[f"{name}_x"])
    assert np.linalg.norm(y - data[f"{name}_y"]) <= TOLERANCE * np.linalg.norm(data[f"{name}_y"])


@pytest.mark.parametrize("n", [MATVEC_ROWS + 1, 20])
def test_more_rows_are_dequantised_and_multiplied_dense(n, make_weight, rng):
    weight, x = operands(make_weight, rng, config="m2v8g-1", n=n)
    y, reports = emulate.multiply(KERNEL, weight, x)
    dense, same = emulate.multiply(DequantDense(), weight, x)
    assert np.array_equal(y, dense)
    assert reports == same
    assert error(y, Truth(x, weight)) <= TOLERANCE


@pytest.mark.parametrize("multiprocessors", [4, 82, 132])
@pytest.mark.parametrize("n", [1, 2, 5, 6])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 1024, 4096, 14336, 28672, 128256])
def test_blocks_fill_whole_waves(rows, n, multiprocessors):
    def waves(per_block):
        return -(-n * -(-rows // per_block) // multiprocessors)

    chosen = aqlm.rows_per_block(rows, n, multiprocessors)
    fewest = waves(aqlm.MAX_ROWS)
    assert chosen == next(r for r in range(1, aqlm.MAX_ROWS + 1) if waves(r) == fewest)


@pytest.mark.parametrize(("config", "busiest"), list(zip(PUBLISHED, ("L2", "wavefronts") * 2)))
def test_model_names_what_is_waited_for(config, busiest):
    spec = CodebookSpec(28672, 8192, codegemm.CodebookConfig.parse(config), (28672,))
    works = [KERNEL.decide(Product.of(spec, n, HALF), H200).works for n in (1, 6, 32)]
    slices = len(dequant_dense.slices(spec, HALF, dequant_dense.SLICE_BYTES))
    assert [len(each) for each in works] == [1, 1, 2 * slices]
    assert [model.bound(each, H200) for each in works[:2]] == [busiest] * 2
    one, six, _ = (model.seconds(each, H200) for each in works)
    assert 4 < six / one <= 6.1


@pytest.mark.parametrize("config", PUBLISHED)
def test_model_counts_what_the_emulator_counts(config, make_weight, rng):
    weight, x = operands(make_weight, rng, config=config, rows=24, vectors=512, n=2)
    spec = weight.spec
    _, [report] = emulate.multiply(KERNEL, weight, x)
    [work] = KERNEL.decide(Product.of(spec, len(x), x.dtype, np.float32), emulate.SMALL_GPU).works
    shared = sum(counts.wavefronts for (*_, space, _), counts in report.counts.items() if space == "shared")
    codes = len(x) * aqlm.code_bytes(spec) / 128
    if not aqlm.in_shared_memory(spec):
        # Every 16 bytes are a sector of their own, unless lanes of a warp meet in one.
        assert 0.9 < report.of("fetch", space="global").sectors * 32 / (work.l2_bytes) <= 1
    assert work.wavefronts == shared + codes
