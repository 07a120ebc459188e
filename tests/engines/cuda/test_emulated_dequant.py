"""The CUDA dequantising kernel in the emulator: results, counters, barriers, both forms."""

import dataclasses
import random

import numpy as np
import pytest
from emulator import cases, emulate
from emulator.cases import COMMON, Truth, error, product_of, spec_of
from support import errors

from codegemm import arrays
from codegemm.engines.cuda import dequant_cut, dequant_fast, rows
from codegemm.engines.cuda import dequant_layout as layout
from codegemm.engines.cuda import dequant_plain as plain
from codegemm.engines.cuda.dequant import Dequant
from codegemm.engines.cuda.dequant_cut import candidates, cut_for, fits
from codegemm.engines.cuda.gpu import KNOWN, RESERVED, Gpu
from codegemm.formats import names
from codegemm.kernel import Product

KERNEL = Dequant()
GPU = dataclasses.replace(emulate.SMALL_GPU, arch=80)  # whose products take the fast form, not that for Hopper
TOLERANCE = errors.TOLERANCE["dequant"]
GPUS = {
    "data centre": GPU,
    "desktop": Gpu(89, 2, shared_per_block=101376, shared_per_multiprocessor=102400, threads_per_multiprocessor=1536),
}
FAST = {
    "v": (4, 8, 16),
    "m": (1, 2, 3, 5),
    "b": (8, 2, 4, 6, 12),
    "group_vectors": (32, 4, 1, 5, 12, 25, -1),
    "n": (1, 9, 17, 64),
    **COMMON,
    "gpu": tuple(GPUS),
    "cut": ("best", "any"),
}
PLAIN = {
    "v": (3, 1, 2, 4, 5, 7, 12),
    "m": (1, 2, 8),
    "b": (8, 5, 12),
    "group_vectors": (1, 3, -1),
    "n": (1, 4, 17),
    **COMMON,
    "gpu": ("data centre",),
}


def is_fast(case):
    """Whether the fast form multiplies the case, or None while it is incomplete."""
    if not {"v", "group_vectors", "groups"} <= set(case):
        return None
    return fits(spec_of({"m": 1, "b": 8, "rows": 1, "parts": 1} | case))


FAST_CASES = cases.covering(FAST, 200 if cases.ALL else 0, lambda case: is_fast(case) is not False)
PLAIN_CASES = cases.covering(PLAIN, 100 if cases.ALL else 0, lambda case: is_fast(case) is not True)


def cut_of(case):
    """Of the fast form."""
    spec, gpu = spec_of(case), GPUS[case["gpu"]]
    best = cut_for(spec, case["n"], gpu)
    if case["cut"] == "best":
        return best
    return random.Random(case["seed"]).choice([c for c in candidates(spec, case["n"], gpu) if c.shared == best.shared])


def steps_of(case):
    product, gpu = product_of(case), GPUS[case["gpu"]]
    if fits(product.spec):
        return emulate.cut_steps(dequant_fast, product, cut_of(case), gpu)
    return KERNEL.decide(product, gpu)


def run(case, make_weight, rng):
    """The emulated product, its float64 truth, the report and the weight."""
    weight, x = cases.operands(case, make_weight, rng)
    steps = steps_of(case)
    y, [report] = emulate.multiply(KERNEL, weight, x, steps=steps, order=case["order"], seed=case["seed"])
    return y, Truth(x, weight), report, weight


def multiply(weight, x, out_dtype=np.float32, **options):
    """The emulated product and the report."""
    y, [report] = emulate.multiply(KERNEL, weight, x, out_dtype, GPU, **options)
    return y, report


@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g-1", "m1v8b16g-1", "m2v16g32"])
def test_cuts_are_found_once_for_all_n_that_take_the_same(config):
    """Searching takes a tenth of a second, and a plan asks for every n."""
    spec = names.spec_of((256, 1024), config)
    dequant_cut._fastest.cache_clear()
    for gpu in GPUS.values():
        for n in range(1, dequant_cut.MAX_N + 1):
            fastest = min(candidates(spec, n, gpu), key=lambda cut: dequant_cut.estimate(cut, spec, gpu))
            assert cut_for(spec, n, gpu) == fastest
    assert dequant_cut._fastest.cache_info().misses == len(GPUS) * dequant_cut.MAX_N // dequant_cut.BATCHES[0]


@pytest.mark.parametrize("case", FAST_CASES, ids=cases.name_of)
def test_emulated_products_and_their_counters(case, compiled, make_weight, rng):
    y, truth, report, weight = run(case, make_weight, rng)
    assert error(y, truth) <= TOLERANCE[case["dtype"]]

    spec, cut = weight.spec, cut_of(case)
    blocks, pieces = rows.row_blocks(spec), 2 if spec.config.v == 16 else 1
    lookups = report.of("look_up", space="shared" if cut.shared else "global")
    assert lookups.instructions == cut.k_blocks * 16 * spec.config.m * pieces * blocks * cut.passes
    if cut.shared:
        assert lookups.wavefronts == lookups.instructions * (2 if spec.config.v == 4 else 4)
        copies = report.of("copy_codebooks", "store")
        assert copies.wavefronts == copies.least_wavefronts
    fragments = report.of("load_fragment")
    assert fragments.wavefronts == 4 * fragments.instructions
    codes = report.of("load_codes", space="global")
    assert codes.sectors == codes.least_sectors
    assert codes.bytes == cut.k_blocks * spec.config.m * blocks * layout.block_bytes(spec) * cut.passes
    scales = report.of("load_scales", space="global")
    assert scales.sectors == scales.least_sectors
    stores = report.of("store_item", "store")
    assert stores.wavefronts == stores.least_wavefronts


@pytest.mark.parametrize("case", PLAIN_CASES, ids=cases.name_of)
def test_emulated_plain_products(case, compiled, make_weight, rng):
    y, truth, report, weight = run(case, make_weight, rng)
    assert error(y, truth) <= 1e-6
    assert (
        report.events["block barrier"]
        == rows.row_blocks(weight.spec) * plain.cut_for(weight.spec, len(y), GPUS[case["gpu"]]).splits
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", cases.SIZES)
def test_emulated_range_of_x(dtype, size, make_weight, rng):
    weight = make_weight(40, 512, "m2v4g64")
    x = cases.x_of_size(size, 9, 512, dtype, rng)
    y, _ = multiply(weight, x)
    assert error(y, Truth(x, weight)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("config", ["m1v4g32", "m1v5g-1"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_emulated_nonfinite_x_stays_in_its_row(bad, config, make_weight, rng):
    weight = make_weight(40, 160, config)
    x = rng.standard_normal((3, 160)).astype(np.float32)
    cases.check_nonfinite_stays_in_its_row(lambda x: multiply(weight, x)[0], x, bad, 1, rng)


@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g-1", "m1v3g-1"])
def test_emulated_results_do_not_depend_on_the_order(config, make_weight, rng):
    weight = make_weight(130, 1536, config, 2)
    x = rng.standard_normal((5, 1536)).astype(np.float16)
    assert not fits(weight.spec) or cut_for(weight.spec, 5, GPU).splits > 1
    results = [multiply(weight, x, order=order, seed=seed)[0] for seed in (0, 1) for order in emulate.ORDERS]
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_emulated_output_in_the_dtype_of_x(name, make_weight, rng):
    for config in ("m1v4g32", "m1v6g-1"):
        weight = make_weight(45, 192, config)
        x = rng.standard_normal((17, 192)).astype(arrays.float_dtype(name))
        cases.check_rounded_once(multiply, weight, x)


@pytest.mark.parametrize("n", [1, 16, 40, 64])
@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g-1", "m1v3g-1"])
def test_emulated_joins_make_as_many_trips_as_predicted(config, n, make_weight, rng):
    """In order, the last split's warps add all of their blocks of rows, for all passes' rows of x."""
    weight = make_weight(96, 1536, config)
    x = rng.standard_normal((n, weight.shape[1])).astype(np.float16)
    _, report = multiply(weight, x)
    if fits(weight.spec):
        cut = cut_for(weight.spec, n, GPU)
        assert cut.passes == (1 if n <= 32 else 2)
        blocks = [len(range(first + w, end, cut.warps)) for _, first, end, _, _ in cut.slices for w in range(cut.warps)]
    else:
        cut, blocks = plain.cut_for(weight.spec, n, GPU), [1] * rows.row_blocks(weight.spec)
    assert cut.splits > 1
    assert report.events["trip"] == sum(rows.join_trips(cut.splits, n, count) for count in blocks)


@pytest.mark.parametrize("n", [1, 20, 50])
def test_emulated_joins_add_splits_in_their_order(n, make_weight, rng):
    weight = make_weight(96, 1536, "m1v4g128")
    cut = cut_for(weight.spec, n, GPU)
    assert cut.splits > 2
    x = rng.standard_normal((n, 1536)).astype(np.float16)
    cases.check_splits_are_added_in_their_order(
        KERNEL, weight, x, lambda product, scratch: [dequant_fast.launch(product, cut, GPU, scratch)]
    )


def test_what_decides_between_cuts():
    """A launch whose blocks find room beside those of the one before starts meanwhile; centroids that come from L2 are
    asked for by all warps that there may be."""
    gpu = KNOWN["h200"]
    few = cut_for(names.spec_of((1024, 4096), "m1v4g128"), 16, gpu)
    assert (few.warps, len(few.slices) * few.splits <= gpu.multiprocessors) == (8, True)
    assert 2 * (few.shared_bytes + RESERVED) <= gpu.shared_per_multiprocessor
    far = names.spec_of((4096, 14336), "m1v8b16g-1")
    assert {cut.warps for cut in candidates(far, 16, gpu)} == {8}


@pytest.mark.parametrize("cluster", [2, 5, 8])
@pytest.mark.parametrize(
    ("config", "n", "dtype"),
    [("m1v4g128", 5, "float16"), ("m2v8g-1", 20, "float16"), ("m1v4g128", 40, "float16"), ("m1v4g128", 9, "bfloat16")],
)
def test_emulated_clusters(config, n, dtype, cluster, make_weight, rng):
    """All splits of a slice, with several rows of x and passes over W, parts, and rows that fill no block."""
    weight = make_weight(70, 64 * 8 * cluster, config, 2)
    gpu = dataclasses.replace(
        emulate.SMALL_GPU, multiprocessors=64, clusters=tuple(64 // size for size in range(1, 17))
    )
    product = Product.of(weight.spec, n, arrays.float_dtype(dtype), np.float32)
    cut = next(c for c in candidates(weight.spec, n, gpu) if c.cluster == cluster)
    # More blocks of rows than a warp has, and fewer than the cluster; k blocks for some of the warps, and then for all.
    cut = dataclasses.replace(cut, warps=4, slices=rows.slices(weight.spec, 3), chunk_blocks=3)
    x = rng.standard_normal((n, weight.shape[1])).astype(product.dtype)
    results = []
    for order in emulate.ORDERS:
        y, report = multiply(weight, x, steps=emulate.cut_steps(dequant_fast, product, cut, gpu), order=order)
        assert error(y, Truth(x, weight)) <= TOLERANCE[dtype]
        eights = sum(-(-min(cut.batch, n - first) // 8) for first in range(0, n, cut.batch))  # of rows of x
        assert report.events["sent"] == cut.splits * 32 * sum(rows.part_blocks(weight.spec)) * 8 * eights
        assert "atomic" not in report.events
        results.append(y)
    assert all(np.array_equal(result, results[0]) for result in results)


def test_joins_of_many_splits_and_rows_of_x_wait_sixteen_times():
    """4096 x 14336: 32 splits, 16 rows of x, two blocks of rows a warp; one row of x at a time it would be 128."""
    assert rows.join_trips(32, 16, 2) == 16


BARRIERS = cases.barriers("dequant.cu", "dequant_[!w]*", "splits.cuh")


def test_barriers_are_found():
    assert len(BARRIERS) == 8


def steps_with_every_barrier(product):
    """Several chunks of x a split, with one split of K and with several; the plain form has one cut."""
    if not fits(product.spec):
        return [KERNEL.decide(product, GPU)]
    fitting = [c for c in candidates(product.spec, product.n, GPU) if c.warps == 4]
    one, several = (
        next(c for c in fitting if (c.splits > 1) == split and c.split_blocks > 2) for split in (False, True)
    )
    cuts = (dataclasses.replace(cut, chunk_blocks=2) for cut in (one, several))
    return [emulate.cut_steps(dequant_fast, product, cut, GPU) for cut in cuts]


@pytest.mark.parametrize(("file", "at"), BARRIERS)
def test_emulated_kernel_without_a_barrier_fails(file, at, tmp_path, make_weight, rng):
    folder = cases.without_barrier(file, at, tmp_path / "kernels")
    weight = make_weight(130, 768, "m1v3g-1" if file == "dequant_plain.cu" else "m1v4g128")
    x = rng.standard_normal((20, weight.shape[1])).astype(np.float16)
    truth = Truth(x, weight)

    def fails(**options):
        return cases.fails(lambda: multiply(weight, x, folder=folder, **options)[0], truth, TOLERANCE["float16"])

    failures = 0
    for steps in steps_with_every_barrier(Product.of(weight.spec, len(x), x.dtype, np.float32)):
        failures += any(fails(steps=steps, order=order, seed=seed) for seed in range(4) for order in emulate.ORDERS)
        y, _ = multiply(weight, x, steps=steps, order="shuffled")
        assert error(y, truth) <= TOLERANCE["float16"]
    assert failures
