"""The CUDA kernel of the LUT-GEMM baseline in the emulator: tables, products, counters, how products are cut."""

import numpy as np
import pytest
from emulator import cases, emulate
from emulator.cases import error
from support import errors

import codegemm
from codegemm import arrays
from codegemm.baselines.cuda import lutgemm
from codegemm.baselines.cuda.lutgemm import MAX_N, MAX_WARPS, WARP_ROWS, Lutgemm
from codegemm.checkpoints import from_lutgemm
from codegemm.engines.cuda import model, rows
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.formats import spec_of as spec_named
from codegemm.formats.codebook_config import all_signs
from codegemm.kernel import Product
from codegemm.registry import kernel_for
from codegemm.testing.truth import Truth

KERNEL, HALF, H200 = Lutgemm(), np.dtype(np.float16), KNOWN["h200"]
TOLERANCE = errors.TOLERANCE["lutgemm"]
# Every pair of values of every two of these occurs in a case. `group`: codes that share a scale, -1 for the whole row.
AXES = {
    "v": (8, 4, 7, 1, 2, 3, 5, 6),
    "group": (16, 4, 3, -1, 24, 1),
    "planes": (2, 1, 3, 8),
    "groups": (3, 1, 2),
    "rows": (100, 1, 64, 65, 257),
    "n": (1, 2, 3),
    "parts": (1, 2, 3),
    "dtype": ("float16", "bfloat16", "float32"),
    "order": emulate.ORDERS,
}


def allowed(case):
    """What only compiles more, or takes longer, is left to the larger set."""
    if cases.ALL:
        return True
    few = case.get("dtype", "float16") == "float16" or case.get("v", 8) == 8
    return few and case.get("planes", 1) * case.get("rows", 1) * case.get("n", 1) < 800


CASES = cases.covering(AXES, 300 if cases.ALL else 0, allowed)


def config_of(case):
    g = case["v"] * case["group"] if case["group"] > 0 else -1
    return f"q{case['planes']}v{case['v']}g{g}"


def columns_of(case):
    return case["v"] * (case["group"] if case["group"] > 0 else 13) * case["groups"]


def product_of(case):
    spec = spec_named((case["rows"], columns_of(case)), config_of(case))
    return Product.of(spec, case["n"], arrays.float_dtype(case["dtype"]), np.float32)


def steps_of(case):
    product = product_of(case)
    return kernel_for(KERNEL, product.spec).decide(product, emulate.SMALL_GPU)


def folded(whole):
    """A weight, or a spec, as the kernel takes it."""
    around = codegemm.TransformedSpec | codegemm.TransformedWeight
    return whole.folded.core if isinstance(whole, around) else whole


def multiply(weight, x, cut=None, **options):
    """y, the one launch's report and how it was cut."""
    weight = folded(weight)
    chosen = cut or lutgemm.cut_for(weight.spec, emulate.SMALL_GPU)
    product = Product.of(weight.spec, len(x), x.dtype, np.float32)
    steps = emulate.cut_steps(lutgemm, product, chosen) if cut else None
    y, [report] = emulate.multiply(KERNEL, weight, x, steps=steps, **options)
    return y, report, chosen


def tables(x):
    """Entries [2^v] of x [v] in fp16: sums for six bits term by term, then twice x added for each further one."""
    codes, low = np.arange(1 << min(len(x), 6)), np.float16(0)
    for bit, number in enumerate(x):
        low = low + np.where(codes >> bit & 1, number, -number)
    for number in x[6:]:
        low = np.concatenate([low, low + np.float16(2) * number])
    return low


def check_counters(report, cut, weight, n):
    layout = lutgemm.layout_of(folded(weight).spec)
    warps = layout.padded_rows // WARP_ROWS
    codes = report.of("load_codes", space="global")
    assert codes.bytes == n * layout.code_bytes
    assert codes.sectors == codes.least_sectors
    scales = report.of("load_scales", space="global")
    assert scales.sectors == scales.least_sectors
    lookups = report.of("gather")
    vectors = layout.vectors if layout.words == 0 else layout.runs * layout.run_words * lutgemm.WORD_CODES
    assert lookups.instructions == n * 2 * warps * layout.planes * vectors
    most = {8: 4, 7: 2}.get(layout.v, 1)  # words of a table in a bank
    assert lookups.instructions <= lookups.wavefronts <= most * lookups.instructions
    built = report.of("build", "store")
    assert built.bytes == n * cut.slices * layout.runs * layout.table_bytes
    assert built.wavefronts == built.least_wavefronts
    runs = [min(cut.split_runs, layout.runs - first) for first in range(0, layout.runs, cut.split_runs)]
    assert report.events["block barrier"] == n * cut.slices * sum(2 * -(-each // cut.tile_runs) - 1 for each in runs)
    trips = warps * rows.join_trips(cut.splits, n, WARP_ROWS // 32)
    assert (
        trips <= report.events.get("trip", 0) <= 2 * trips
    )  # one warp joins both blocks of rows, or two join one each


@pytest.mark.parametrize("case", CASES, ids=cases.name_of)
def test_emulated_products_and_their_counters(case, compiled, make_weight, rng):
    weight = make_weight(case["rows"], columns_of(case), config_of(case), case["parts"])
    x = rng.standard_normal((case["n"], weight.shape[1])).astype(arrays.float_dtype(case["dtype"]))
    y, report, cut = multiply(weight, x, order=case["order"], seed=case["seed"])
    assert error(y, Truth(x, weight)) <= TOLERANCE * (2 if y.size < 64 else 1)
    check_counters(report, cut, weight, case["n"])


@pytest.mark.parametrize("v", AXES["v"])
def test_tables_have_the_bits_of_the_original(v, rng):
    """A row for each code of one k-vector, its scale 1: y has the table."""
    codes = np.arange(1 << v, dtype=np.uint8).reshape(-1, 1, 1)
    weight = codegemm.CodebookWeight(codes, all_signs(v)[None], np.ones((len(codes), 1), np.float16))
    x = rng.standard_normal((1, v)).astype(np.float16)
    assert np.array_equal(multiply(weight, x)[0], tables(x[0])[None])


@pytest.mark.parametrize(("planes", "rows", "groups"), [(2, 70, 3), (3, 64, 1), (1, 1, 5)])
def test_emulated_products_of_the_originals_layout(planes, rows, groups, rng):
    """Of groups of 32 the kernel's arrays are those of the original, filled up to whole warps' rows."""
    words = rng.integers(0, 1 << 32, (groups, planes, rows), np.uint32)
    alpha = rng.uniform(0.5, 1.5, (groups, planes, rows)).astype(np.float16)
    weight = from_lutgemm(words, alpha)
    x = rng.standard_normal((2, 32 * groups)).astype(np.float16)
    signs = 2.0 * (words[..., None] >> np.arange(32) & 1) - 1  # [group, plane, row, column]
    truth = np.einsum("gprk,gpr,ngk->nr", signs, alpha.astype(np.float64), x.reshape(2, groups, 32).astype(np.float64))
    y, _, _ = multiply(weight, x)
    # Of random signs, in the mean: the few of a single row may cancel.
    squares = np.einsum("gpr,ngk->", alpha.astype(np.float64) ** 2, x.astype(np.float64).reshape(2, groups, 32) ** 2)
    assert np.linalg.norm(y - truth) <= 2 * TOLERANCE * np.sqrt(squares)
    arranged = KERNEL.arrange(folded(weight)).arrays
    assert np.array_equal(arranged["codes"].reshape(groups, planes, -1)[..., :rows], words)
    assert np.array_equal(arranged["scales"][..., :rows], alpha)


@pytest.mark.parametrize("config", ["q2g128", "q1v4g12", "q2g32"])
def test_emulated_tiles_and_splits(config, make_weight, rng):
    """Whatever the cut is; the last split and its last tile are shorter than the others."""
    weight = make_weight(130, 1152, config)
    layout, x = lutgemm.layout_of(folded(weight).spec), rng.standard_normal((2, 1152)).astype(np.float16)
    for splits, warps in ((1, 3), (2, 2), (4, 1)):
        each = -(-layout.runs // splits)
        for tile in {min(layout.ahead, each), each}:
            cut = lutgemm.Cut(warps, -(-3 // warps), -(-layout.runs // each), each, tile)
            y, report, _ = multiply(weight, x, cut, order="shuffled")
            assert error(y, Truth(x, weight)) <= TOLERANCE, cut
            check_counters(report, cut, weight, 2)


@pytest.mark.parametrize("config", ["q2g64", "q1v5g10"])
def test_emulated_rows_of_x_are_multiplied_alone(config, make_weight, rng):
    weight, x = make_weight(70, 320, config), rng.standard_normal((MAX_N, 320)).astype(np.float16)
    together, _, _ = multiply(weight, x)
    for row in (0, 7, MAX_N - 1):
        assert np.array_equal(multiply(weight, x[[row]])[0][0], together[row])


@pytest.mark.parametrize("columns", [256, 4096])
def test_emulated_error_is_that_of_sums_in_fp16_whatever_the_length(columns, make_weight, rng):
    weight, x = make_weight(64, columns, "q2g128"), rng.standard_normal((4, columns)).astype(np.float16)
    assert 4e-4 < error(multiply(weight, x)[0], Truth(x, weight)) < 9e-4


def test_emulated_large_x_overflows(make_weight, rng):
    """In its row: a table's entry, a word's sum, twice a number, or the number itself is beyond fp16."""
    codes = rng.integers(0, 256, (64, 8, 1), np.uint8)
    codes[0] = 255
    weight = codegemm.CodebookWeight(codes, all_signs(8)[None], np.ones((64, 2), np.float16))
    x = np.ones((6, 64), np.float32)
    x[0, :8], x[1, :32], x[2, 7], x[3, 5], x[4, 5] = 9000, 2100, 33000, 7e4, 33000
    y, _, _ = multiply(weight, x)
    assert [bool(np.isfinite(row).all()) for row in y] == [False] * 4 + [True] * 2
    assert not np.isfinite(y[3]).any()
    assert error(y[4:], Truth(x[4:], weight)) <= TOLERANCE


@pytest.mark.parametrize(("v", "expected"), [(8, 2.77), (7, 2.0), (6, 1.0), (1, 1.0)])
def test_emulated_random_codes_conflict(v, expected, make_weight, rng):
    """By so many wavefronts a lookup, which the model takes."""
    weight = make_weight(640, 32 * v, f"q2v{v}g-1")
    _, report, _ = multiply(weight, rng.standard_normal((1, 32 * v)).astype(np.float16))
    lookups = report.of("gather")
    assert lookups.wavefronts / lookups.instructions == pytest.approx(expected, abs=0.06)
    assert lutgemm._CONFLICTS.get(v, 1.0) == expected


SHAPES = ((4096, 4224), (14336, 4224), (8192, 28800), (128256, 4224), (1, 384), (65, 384), (600_000, 384))


@pytest.mark.parametrize("name", sorted(KNOWN))
@pytest.mark.parametrize("config", ["q2g128", "q1v1g-1", "q3v3g6"])
def test_cuts_cover_the_product_and_fill_the_gpu(config, name):
    gpu = KNOWN[name]
    for shape in SHAPES:
        if shape[1] == 28800 and config == "q2g128":
            shape = 8192, 28672
        spec = folded(spec_named(shape, config))
        layout, cut = lutgemm.layout_of(spec), lutgemm.cut_for(spec, gpu)
        assert cut.warps <= MAX_WARPS
        assert (cut.slices - 1) * cut.warps < layout.padded_rows // WARP_ROWS <= cut.slices * cut.warps
        assert (cut.splits - 1) * cut.split_runs < layout.runs <= cut.splits * cut.split_runs
        assert cut.tile_runs * layout.table_bytes <= min(64 << 10, gpu.shared_per_block)
        assert cut.tile_runs == cut.split_runs or cut.tile_runs % layout.ahead == 0
        assert cut.splits == 1 or layout.padded_rows <= 32 * rows.MAX_ROW_BLOCKS
        assert min(shape) < 4096 or cut.slices * cut.splits > 0.9 * gpu.multiprocessors


@pytest.mark.parametrize(("config", "words"), [("q2g128", 4), ("q2g64", 2), ("q2g96", 1), ("q1v4g12", 0), ("q2g-1", 4)])
def test_runs_are_of_one_group(config, words):
    spec = folded(spec_named((64, 1152), config))
    assert lutgemm.layout_of(spec).words == words


@pytest.mark.parametrize(
    ("columns", "words", "bytes_of_codes"), [(32, 1, 1), (64, 2, 1), (96, 4, 4 / 3), (136, 4, 32 / 17)]
)
def test_the_codes_of_one_group_are_filled_up(columns, words, bytes_of_codes):
    layout = lutgemm.layout_of(spec_named((64, columns), "q1g-1"))
    assert layout.words == words
    assert layout.code_bytes == bytes_of_codes * 64 * columns / 8


@pytest.mark.parametrize("config", ["q2g128", "q3v4g16", "q1v7g21"])
def test_model_counts_what_the_emulator_counts(config, make_weight, rng):
    weight = make_weight(192, 2688, config)
    x = rng.standard_normal((2, 2688)).astype(np.float16)
    _, report, cut = multiply(weight, x)
    product = Product.of(folded(weight).spec, 2, HALF, np.float32)
    work = lutgemm.work(cut, product, emulate.SMALL_GPU)
    shared = sum(counts.wavefronts for (*_, space, _), counts in report.counts.items() if space == "shared")
    codes = report.of("load_codes", space="global").bytes
    assert work.wavefronts == pytest.approx(shared + codes / 128, rel=0.02)
    assert work.bytes_read == codes + x.nbytes + 2 * lutgemm.layout_of(product.spec).scale_bytes


def test_model_says_what_is_waited_for():
    """Bank conflicts; without them the codes, and of small groups the instructions."""
    for config, busiest in (("q2g128", "wavefronts"), ("q2v6g96", "memory"), ("q2g32", "instructions")):
        spec = folded(spec_named((28672, 8448), config))
        one, four = (KERNEL.decide(Product.of(spec, n, HALF), H200).works for n in (1, 4))
        assert model.bound(one, H200) == busiest
        assert 3.4 < model.seconds(four, H200) / model.seconds(one, H200) <= 4
