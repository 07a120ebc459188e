"""How the CUDA engine arranges a weight and cuts a product: pure functions, no GPU."""

import math
from dataclasses import replace

import numpy as np
import pytest
from emulator import emulate

from codegemm.engines.cuda import Dequant, dequant_cut, dequant_fast, dequant_wide, model, psumbook_cut
from codegemm.engines.cuda import dequant_wide_cut as wide_cut
from codegemm.engines.cuda import psumbook_layout as layout
from codegemm.engines.cuda import rows as rows_of_w
from codegemm.engines.cuda.gpu import CLUSTER, KNOWN, RESERVED
from codegemm.formats.codebook import CodebookSpec
from codegemm.formats.codebook_config import CodebookConfig
from codegemm.kernel import Product

H200, A100 = KNOWN["h200"], KNOWN["a100"]
GPUS = [H200, A100, replace(KNOWN["rtx4090"], multiprocessors=76), KNOWN["rtx5090"]]
SHAPES = [
    (14336, 4096),
    (4096, 14336),
    (28672, 8192),
    (8192, 28672),
    (53248, 16384),
    (1024, 4096),
    (1, 256),
    (33, 1280),
]


def spec_of(rows, columns, config, parts=None):
    return CodebookSpec(rows, columns, CodebookConfig.parse(config), parts or (rows,))


@pytest.mark.parametrize("phases", [0, 1, 2, 4, 8, 16, 32])
def test_lanes_look_up_every_position_in_different_banks(phases):
    order = layout.positions(phases)
    assert all(sorted(lane) == list(range(32)) for lane in order)
    assert all(sorted(step) == list(range(32)) for step in order.T)
    length = 32 // max(phases, 1)
    # A phase stays within positions that share a scale.
    runs = order.reshape(32, -1, length) // length
    assert (runs == runs[:, :, :1]).all()
    # Entries of 8 bytes are served a half warp at a time: 16 pairs of banks.
    assert all(len(set(step[half] % 16)) == 16 for step in order.T for half in (slice(16), slice(16, 32)))


@pytest.mark.parametrize("group_vectors", [*range(1, 97), 128, 160])
def test_phases_never_cross_a_group(group_vectors):
    spec = spec_of(32, 4 * group_vectors * 3, f"m1v4g{4 * group_vectors}")
    count, shift = layout.phases(spec), layout.scale_shift(spec)
    length = 32 // count
    assert length == math.gcd(32, group_vectors)
    for block in range(layout.k_blocks(spec)):
        starts = 32 * block + layout.positions(count)[:, ::length] // length * length
        assert (starts // group_vectors == (starts + length - 1) // group_vectors).all()
    if shift:
        stride = 32 << shift
        assert group_vectors % stride == 0


def test_arranged_codes_are_the_codes(make_weight):
    for config, columns in (("m2v4b8g128", 512), ("m3v4b3g16", 240), ("m1v8b2g-1", 1032)):
        weight = make_weight(70, columns, config, parts=2)
        spec, bits = weight.spec, layout.container_bits(weight.config.b)
        arranged, order = layout.arrange_codes(weight), layout.positions(layout.phases(spec))
        rows = rows_of_w.pad_rows(spec, np.arange(70))
        for p, block, lane, step in (
            (0, 0, 0, 0),
            (1, 1, 31, 17),
            (len(arranged) - 2, 3, 5, 31),
            (len(arranged) - 1, 2, 7, 20),
        ):
            k_block, book = divmod(p, weight.config.m)
            vector = 32 * k_block + order[lane, step]
            stream = arranged[p, block, :, lane].ravel()  # this lane's bytes
            per_word = 32 // bits
            word = stream[step // per_word * 4 :][:4]
            code = word[step % 4] >> step % per_word // 4 * bits & (1 << bits) - 1
            expected = weight.codes[rows[32 * block + lane], vector, book] if vector < spec.vectors else 0
            assert code == expected


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: f"sm_{gpu.arch}")
@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g128", "m1v4g4", "m4v8g-1", "m1v4b2g128", "m3v8b7g64"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_cuts_cover_the_product_and_fit_the_gpu(n, config, gpu):
    for shape in SHAPES:
        spec = spec_of(*shape, config)
        cut = psumbook_cut.cut_for(spec, n, gpu)
        assert cut.batch >= n
        assert cut.shared_bytes <= gpu.shared_per_block
        assert cut.warps <= psumbook_cut.MAX_WARPS
        assert 1 <= cut.units_per_tile <= min(256 >> spec.config.b, cut.units_per_split)
        assert cut.units * cut.rows >= layout.k_blocks(spec) * spec.config.m
        assert cut.units * cut.rows <= layout.position_rows(spec)
        assert (cut.splits - 1) * cut.units_per_split < cut.units <= cut.splits * cut.units_per_split
        assert cut.rows == 1 or (cut.batch < 4 and layout.phases(spec) <= 8)
        assert cut.partials * cut.cluster == cut.splits
        if cut.cluster > 1:
            assert cut.cluster <= CLUSTER
            assert len(cut.slices) * cut.partials <= gpu.clusters_of(cut.cluster)
        blocks = [block for _, first, end, _, _ in cut.slices for block in range(first, end)]
        assert blocks == list(range(-(-shape[0] // 32)))


def test_slices_keep_to_their_parts():
    spec = spec_of(300, 512, "m1v4", (100, 33, 167))
    assert tuple(rows_of_w.slices(spec, 2)) == (
        (0, 0, 2, 0, 100), (0, 2, 4, 64, 100),
        (1, 4, 6, 100, 133),
        (2, 6, 8, 133, 300), (2, 8, 10, 197, 300), (2, 10, 12, 261, 300),
    )  # fmt: skip


@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g128"])
def test_large_products_fill_the_gpu_once(config):
    """Every multiprocessor has work, none twice as much as another; the rest is a small part of it: launch, tables and
    joins take 13,000 clocks at most."""
    for shape in SHAPES[:5]:
        spec = spec_of(*shape, config)
        cut = psumbook_cut.cut_for(spec, 1, H200)
        blocks = len(cut.slices) * cut.splits
        assert 0.8 < blocks / H200.multiprocessors / math.ceil(blocks / H200.multiprocessors) <= 1
        lookups = spec.out_features * spec.vectors * spec.config.m / 32 / H200.multiprocessors
        assert psumbook_cut.estimate(cut, spec, H200) * H200.clock < 3.25 * lookups + 13_000


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: f"sm_{gpu.arch}")
def test_more_blocks_of_rows_than_counters_have_no_partial_sums(gpu):
    spec = spec_of(32 * (rows_of_w.MAX_ROW_BLOCKS + 1), 1024, "m1v4g-1")
    for cut in psumbook_cut.candidates(spec, 1, gpu):
        assert cut.partials == 1
        assert cut.shared_bytes <= gpu.shared_per_block


@pytest.mark.parametrize("shape", [*SHAPES[:4], SHAPES[5]])
def test_clusters_run_at_once_where_there_are_any(shape):
    for n in (1, 2, 4):
        spec = spec_of(*shape, "m1v4g128")
        cuts = psumbook_cut.candidates(spec, n, H200)
        assert psumbook_cut.cut_for(spec, n, H200).cluster > 1
        assert {cut.cluster for cut in cuts} > {1, 4, 8}
        for cut in cuts:
            assert len(cut.slices) * cut.partials <= H200.clusters_of(cut.cluster) or cut.cluster == 1
    assert {cut.cluster for cut in psumbook_cut.candidates(spec, 1, A100)} == {1}


@pytest.mark.parametrize(
    ("module", "gpu", "first", "searches", "config"),
    [
        *(
            (dequant_cut, gpu, 1, 1 + dequant_cut.MAX_N // dequant_cut.TILE, config)
            for gpu in (replace(emulate.SMALL_GPU, arch=80), emulate.DESKTOP_GPU)
            for config in ("m1v4g128", "m2v8g-1", "m1v8b16g-1", "m2v16g32")
        ),
        *(
            (wide_cut, emulate.SMALL_GPU, wide_cut.MIN_N, len(wide_cut.BATCHES), config)
            for config in ("m1v4g128", "m2v8g-1", "m1v8g128")
        ),
    ],
)
def test_cuts_are_found_once_for_all_n_that_take_the_same(module, gpu, first, searches, config):
    """Searching takes a tenth of a second, and a plan asks for every n."""
    spec = spec_of(256, 1024, config)
    model.fastest.cache_clear()
    for n in range(first, module.MAX_N + 1):
        fastest = min(module.candidates(spec, n, gpu), key=lambda cut: module.estimate(cut, spec, gpu))
        assert module.cut_for(spec, n, gpu) == fastest
    assert model.fastest.cache_info().misses == searches


def test_what_decides_between_cuts():
    """A launch whose blocks find room beside those of the one before starts meanwhile; centroids that come from L2 are
    asked for by all warps that there may be."""
    few = dequant_cut.cut_for(spec_of(1024, 4096, "m1v4g128"), 16, H200)
    assert (few.warps, len(few.slices) * few.splits <= H200.multiprocessors) == (8, True)
    assert 2 * (few.shared_bytes + RESERVED) <= H200.shared_per_multiprocessor
    far = spec_of(4096, 14336, "m1v8b16g-1")
    assert {cut.warps for cut in dequant_cut.candidates(far, 16, H200)} == {8}


def test_joins_of_many_splits_and_rows_of_x_wait_sixteen_times():
    """4096 x 14336: 32 splits, 16 rows of x, two blocks of rows a warp; one row of x at a time it would be 128."""
    assert rows_of_w.join_trips(32, 16, 2) == 16


def test_other_products_and_gpus_do_not_take_hoppers_form():
    def fits_on(gpu, n, config="m1v4g128", dtype=np.float16):
        return wide_cut.fits(Product.of(spec_of(256, 1280, config), n, dtype), KNOWN[gpu])

    assert fits_on("h200", 128)
    assert fits_on("h200", 64, dtype=np.float32)
    assert not fits_on("h200", 32)
    assert not fits_on("h200", 129)
    assert not fits_on("h200", 65, dtype=np.float32)
    assert not any(fits_on(name, 64) for name, gpu in KNOWN.items() if gpu.arch != wide_cut.ARCH)
    assert not any(fits_on("h200", 64, config) for config in ("m3v8g128", "m1v5g-1", "m1v8b16g-1", "m1v4g32"))


def test_few_rows_of_w_take_the_fast_form():
    def sources(shape, n):
        product = Product.of(spec_of(*shape, "m1v4g128"), n, np.dtype(np.float16))
        return [launch.source for launch in Dequant().decide(product, H200).launches]

    assert sources((28672, 8192), 64) == [dequant_wide.X_SOURCE, dequant_wide.SOURCE]
    assert sources((28672, 8192), 32) == sources((1024, 4096), 64) == [dequant_fast.SOURCE]
    assert sources((1024, 4096), 65) == sources((28672, 8192), 64)


def test_a_plan_for_hoppers_form_is_ready_for_all_fewer_rows():
    spec, batches = spec_of(256, 1280, "m1v4g128"), list(Dequant().batches(128))
    smaller = [Dequant().decide(Product.of(spec, n, np.float16), emulate.SMALL_GPU) for n in batches]
    names = {launch.instance for steps in smaller for launch in steps.launches}
    assert {name.split("<")[0] for name in names} == {"DequantShape", "WideShape", "WideX"}
    assert len(batches) == 128
