"""The CUDA Psumbook kernel in the emulator: results, counters, clusters."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest
from emulator import cases, emulate, table
from emulator.cases import COMMON, error, product_of, spec_of
from support import errors

from codegemm.engines.cuda import psumbook, rows
from codegemm.engines.cuda import psumbook_layout as layout
from codegemm.engines.cuda.psumbook_cut import candidates, cut_for, shared_bytes
from codegemm.kernel import Product
from codegemm.testing.truth import Truth

KERNEL = psumbook.Psumbook()
TOLERANCE = errors.TOLERANCE["psumbook"]
GPUS = {"data centre": emulate.SMALL_GPU, "desktop": emulate.DESKTOP_GPU}
# Every pair of values of every two of these occurs in a case.
AXES = {
    "v": (1, 2, 3, 4, 5, 7, 8, 12, 16),
    "m": (1, 2, 3, 4, 8),
    "b": (8, 1, 2, 3, 4, 5, 6, 7),
    "group_vectors": (32, 1, 2, 3, 4, 8, 16, 24, 48, 64, 96, -1),
    "n": (1, 2, 3, 4),
    **COMMON,
    "gpu": tuple(GPUS),
    "cut": ("best", "any"),
}
CASES = cases.covering(AXES, 500 if cases.ALL else 0)


def cut_of(case):
    spec, gpu = spec_of(case), GPUS[case["gpu"]]
    if case["cut"] == "best":
        return cut_for(spec, case["n"], gpu)
    return random.Random(case["seed"]).choice(candidates(spec, case["n"], gpu))


def steps_of(case):
    return emulate.cut_steps(psumbook, product_of(case), cut_of(case), GPUS[case["gpu"]])


def tolerance(cut, outputs):
    """The bound is on a norm: of few outputs one alone may be that of an unlucky row."""
    return TOLERANCE[cut.batch] * (2 if outputs < 64 and cut.batch > 1 else 1)


def multiply(weight, x, cut, **options):
    """The emulated product, cut so, and the report."""
    steps = emulate.cut_steps(psumbook, Product.of(weight.spec, len(x), x.dtype, np.float32), cut)
    y, [report] = emulate.multiply(KERNEL, weight, x, steps=steps, **options)
    return y, report


def cluster_cut(spec, n, cluster, partials):
    """All rows in a slice, and K in clusters of that size, so many of them."""
    cut, blocks = cut_for(spec, n, emulate.SMALL_GPU), sum(rows.part_blocks(spec))
    assert cut.units % (cluster * partials) == 0
    return replace(
        cut,
        units_per_tile=1,
        units_per_split=cut.units // (cluster * partials),
        slices=rows.slices(spec, blocks),
        warps=2,
        shared_bytes=shared_bytes(spec, cut.batch, cut.rows, 1, blocks, cluster),
        cluster=cluster,
    )


@pytest.mark.parametrize("case", CASES, ids=cases.name_of)
def test_emulated_products_and_their_counters(case, compiled, make_weight, rng):
    weight, x = cases.operands(case, make_weight, rng)
    cut, steps = cut_of(case), steps_of(case)
    y, [report] = emulate.multiply(KERNEL, weight, x, steps=steps, order=case["order"], seed=case["seed"])
    assert error(y, Truth(x, weight)) <= tolerance(cut, y.size)

    lookups, stores = report.of("add"), report.of("store_entries", "store")
    blocks = sum(rows.part_blocks(weight.spec))
    position_rows = cut.units * cut.rows
    assert lookups.instructions == 32 * position_rows * blocks
    assert lookups.wavefronts == lookups.instructions * (2 if cut.batch == 4 else 1)
    assert stores.wavefronts == stores.least_wavefronts
    codes = report.of("load_codes", space="global")
    assert codes.sectors == codes.least_sectors
    assert codes.bytes == position_rows * blocks * layout.block_bytes(weight.config.b)
    if layout.phases(weight.spec):
        scales = report.of("load_scales", space="global")
        assert scales.sectors == scales.least_sectors


@pytest.mark.parametrize(
    ("cluster", "partials", "n"),
    cases.some([(*cut, n) for n in (1, 2, 4) for cut in ((2, 1), (7, 1), (16, 1), (5, 2), (4, 4), (8, 2), (3, 1))]),
)
def test_emulated_clusters(n, cluster, partials, make_weight, rng):
    """More and fewer blocks of rows than thread blocks in a cluster; parts; rows that fill no block; scales of rows."""
    for rows_of_w, config, parts in ((32 * 9, "m1v4b4g128", 1), (70, "m1v4b4g-1", 2)):
        weight = make_weight(rows_of_w, 4 * 32 * 2 * 2 * cluster * partials, config, parts)
        cut = cluster_cut(weight.spec, n, cluster, partials)
        x = rng.standard_normal((n, weight.shape[1])).astype(np.float16)
        truth, blocks, results = Truth(x, weight), sum(rows.part_blocks(weight.spec)), []
        for order in emulate.ORDERS:
            y, report = multiply(weight, x, cut, order=order)
            assert error(y, truth) <= tolerance(cut, y.size)
            assert report.events["sent"] == 32 * blocks * n * cut.splits
            assert report.events.get("atomic", 0) == (blocks * partials if partials > 1 else 0)
            results.append(y)
        assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize(
    ("file", "call", "instead", "complaint"),
    [
        ("splits.cuh", "ptx::cluster_wait();", "", "sent to a block that may not have begun"),
        ("splits.cuh", "ptx::cluster_arrive();", "", "waited for a cluster and did not arrive"),
        ("splits.cuh", "ptx::wait_for_sent(counter);", "", "touched before all that other blocks send has come"),
        ("splits.cuh", "if (threadIdx.x == 0) ptx::make_counter(counter);", "", "at what is no counter|nobody counts"),
        ("splits.cuh", "u32(sent * size * piece_bytes)", "u32(sent * size * piece_bytes + 4)", "wait for each other"),
        ("psumbook.cu", "cluster.advance(stride);", "", "in use"),
    ],
)
def test_emulated_cluster_that_does_not_meet_fails(file, call, instead, complaint, tmp_path, make_weight, rng):
    folder = cases.with_instead(file, call, instead, tmp_path / "kernels")
    weight = make_weight(32 * 9, 4 * 32 * 2 * 4, "m1v4b4g128")
    cut = cluster_cut(weight.spec, 1, 4, 1)
    x = rng.standard_normal((1, weight.shape[1])).astype(np.float16)
    multiply(weight, x, cut)

    def complaint_of(order):
        try:
            multiply(weight, x, cut, order=order, folder=folder)
        except emulate.EmulatorError as complaint:
            return str(complaint)
        return ""

    assert re.search(complaint, " ".join(map(complaint_of, emulate.ORDERS)))


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("splits", [2, 6, 12])
def test_emulated_joins_make_as_many_trips_as_predicted(splits, n, make_weight, rng):
    """In order, the last split's warps add all of their blocks of rows."""
    weight = make_weight(32 * 9, 4 * 32 * 2 * splits, "m1v4g128")
    fitting = candidates(weight.spec, n, emulate.SMALL_GPU)
    cut = next(c for c in fitting if c.splits == splits and c.warps == 8)
    x = rng.standard_normal((n, weight.shape[1])).astype(np.float16)
    _, report = multiply(weight, x, cut)
    blocks = [len(range(first + w, end, cut.warps)) for _, first, end, _, _ in cut.slices for w in range(cut.warps)]
    assert report.events["trip"] == sum(rows.join_trips(splits, n, count) for count in blocks)


@pytest.mark.parametrize(
    ("call", "instead", "complaint"),
    [
        ("ptx::wait_for_previous();", "", "x, y or the workspace touched in .* before the kernel waited"),
        ("ptx::wait_for_previous();", "if (ptx::lane()) ptx::wait_for_previous();", "before the kernel waited"),
        ("ptx::let_next_start();", "", "has not let the next one start"),
        ("ptx::let_next_start();", "return;", "ended before it waited"),
    ],
)
def test_emulated_kernel_that_does_not_wait_fails(call, instead, complaint, tmp_path, make_weight, rng):
    """A kernel may start before what it reads of the one before is there."""
    folder = cases.with_instead("psumbook.cu", call, instead, tmp_path / "kernels")
    weight = make_weight(64, 512, "m1v4g128")
    x = rng.standard_normal((1, 512)).astype(np.float16)
    emulate.multiply(KERNEL, weight, x)
    with pytest.raises(emulate.EmulatorError, match=complaint):
        emulate.multiply(KERNEL, weight, x, folder=folder)


def test_emulated_published_layout_conflicts(rng):
    """The published kernel's tables, 256 fp16 in a row for each position, looked up by lane = row of W."""
    lookups = table.published_lookups(rng)
    assert lookups.instructions == 64
    assert 2.5 < lookups.wavefronts / lookups.instructions < 3.1
