"""How a product by the dequantising kernel's form for Hopper is cut into thread blocks: pure functions of the shape and
of the GPU's limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from codegemm import kernels_cu
from codegemm.engines.cuda import dequant_cut
from codegemm.engines.cuda import dequant_layout as layout
from codegemm.engines.cuda.gpu import CLUSTER, GRID, LANES, RESERVED, Gpu
from codegemm.engines.cuda.model import L2_BYTES, Work, fastest, weighted
from codegemm.engines.cuda.rows import (
    MAX_ROW_BLOCKS,
    Slices,
    container_bits,
    join_trips,
    received_bytes,
    row_blocks,
    slices,
    sum_bytes,
)
from codegemm.engines.cut import divisions
from codegemm.formats.codebook import CodebookSpec
from codegemm.kernel import Product

ARCH = 90  # alone: later ones have other products of a warpgroup
BATCHES = (64, 128)  # rows of x that a compiled kernel multiplies
MIN_N, MAX_N = 33, BATCHES[-1]  # of fewer rows the fast form is done sooner
MAX_SCALED_N = 64  # of x in other types than fp16, which comes under powers of two: sums of a group are apart
MAX_BOOKS = 2
_GROUP_WARPS = 4  # of a warpgroup
_STAGE_BYTES = 8 * 4 * kernels_cu.constant("dequant_wide.cu", "wide_stage_words")  # of a warp
_COUNTER_BYTES = 16  # of x as it comes
_SOON = 16 << 10  # bytes of x of a chunk
# What a cut's `terms` cost, in clocks, as `make gpu PART=cuts` fitted them to the times of many cuts on an H200.
WEIGHTS = {
    "launches": 8849.0,
    "wavefronts": 1.623,
    "products of a warp": 0.9568,
    "k blocks": 222.3,
    "first x": 0.6713,
    "chunks": 515.6,
    "partial bytes": 0.0427,
    "trips": 0.9428,
}


@dataclass(frozen=True)
class Cut:
    """A launch: `slices` x 1 x `splits` thread blocks, all rows of x in one pass over W, all splits of a slice a
    cluster or none.

    batch: rows of x that the kernel is compiled for. chains: products of 64 rows of W that a warpgroup has under way.
    chunk_blocks: k blocks whose x is brought into shared memory together, while those before are multiplied. received:
    where there is what a cluster's blocks send.
    """

    batch: int
    chains: int
    warps: int
    k_blocks: int
    split_blocks: int
    chunk_blocks: int
    slices: Slices
    received: int
    shared_bytes: int
    cluster: int = 1

    @property
    def splits(self) -> int:
        """Parts of K whose sums are added at the end."""
        return -(-self.k_blocks // self.split_blocks)

    @property
    def partials(self) -> int:
        """Sums that meet in the workspace, of each row: those of a cluster do not."""
        return 1 if self.cluster > 1 else self.splits


def fits(product: Product[CodebookSpec], gpu: Gpu) -> bool:
    """Whether this form multiplies so there."""
    spec, most = product.spec, MAX_N if product.dtype == np.float16 else MAX_SCALED_N
    if gpu.arch != ARCH or not MIN_N <= product.n <= most:
        return False
    if not dequant_cut.fits(spec) or spec.config.m > MAX_BOOKS or spec.config.b > 8 or layout.phases(spec) > 1:
        return False
    needed = _fixed_bytes(spec, _GROUP_WARPS, 2) + 2 * x_bytes(spec, kernel_batch(product.n))
    return needed <= gpu.shared_per_block


def kernel_batch(n: int) -> int:
    """Rows of x that the kernel for n of them multiplies."""
    return next(batch for batch in BATCHES if batch >= n)


def chains(spec: CodebookSpec) -> tuple[int, ...]:
    """Products of 64 rows of W that a warpgroup may have under way: one only where half of a lane's codes are whole
    bytes."""
    return (1, 2) if container_bits(spec.config.b) >= 4 else (2,)


def most_warps(spec: CodebookSpec, count: int) -> int:
    """Of a thread block, that registers are enough for: `most_threads` of `WideShape`."""
    return 16 if spec.config.m * spec.config.v == 4 and count == 1 else 8


def x_bytes(spec: CodebookSpec, batch: int, dtype: np.dtype | None = None) -> int:
    """Of a k block: slabs, and inverses of powers of two where x is in another type than fp16, as it is unless it is
    told."""
    return spec.config.v * batch * 32 + (0 if dtype == np.float16 or batch > MAX_SCALED_N else 4 * batch)


def cut_for(spec: CodebookSpec, n: int, gpu: Gpu) -> Cut:
    """The cut with the least estimated time among those that fit the GPU."""
    return fastest(candidates, estimate, spec, kernel_batch(n), gpu)  # the same for all n of a compiled kernel


def candidates(spec: CodebookSpec, n: int, gpu: Gpu) -> list[Cut]:
    """Every cut worth an estimate; at least one, whatever the shape."""
    batch, blocks, total = kernel_batch(n), layout.k_blocks(spec), row_blocks(spec)
    each = x_bytes(spec, batch)
    found = []
    for splits in divisions(blocks, GRID[-1]):
        per_split = -(-blocks // splits)
        for count in chains(spec):
            for warps in range(_GROUP_WARPS, most_warps(spec, count) + 1, _GROUP_WARPS):
                for rows, cluster in _slicings(total, splits, warps * count // 2, gpu):
                    received = received_bytes(batch, rows, cluster)
                    fixed = _fixed_bytes(spec, warps, count) + received
                    chunks = _chunks(per_split, fixed, each, gpu)
                    found += [(count, warps, rows, per_split, chunk, received, cluster) for chunk in chunks]
    cuts = []
    for count, warps, rows, per_split, chunk, received, cluster in dict.fromkeys(found):
        x = chunk * each * (2 if chunk < per_split else 1)
        before = max(_fixed_bytes(spec, warps, count) + x, warps * _STAGE_BYTES)
        if before + received > gpu.shared_per_block:
            continue
        cuts.append(
            Cut(batch, count, warps, blocks, per_split, chunk, slices(spec, rows), before, before + received, cluster)
        )
    return cuts


def _slicings(total: int, splits: int, most_rows: int, gpu: Gpu) -> list[tuple[int, int]]:
    """Blocks of 32 rows that a slice may have, of `total` and at most `most_rows`, and splits that are a cluster: one,
    or all where as many clusters run at once as have all rows."""
    found = []
    if splits == 1 or total <= MAX_ROW_BLOCKS:
        wanted = [-(-total // max(1, gpu.multiprocessors * turns // splits)) for turns in range(1, 5)]
        found = [(min(rows, most_rows), 1) for rows in wanted]
    at_once = gpu.clusters_of(splits) if 1 < splits <= CLUSTER else 0
    if at_once and -(-total // at_once) <= most_rows:
        found.append((-(-total // at_once), splits))
    return found


def estimate(cut: Cut, spec: CodebookSpec, gpu: Gpu) -> float:
    """Seconds of a product."""
    return sum(weighted(terms(cut, spec, gpu), WEIGHTS).values()) / gpu.clock


def terms(cut: Cut, spec: CodebookSpec, gpu: Gpu) -> dict[str, float]:
    """What a product's time is made of, on the busiest multiprocessor.

    wavefronts: of shared memory. products of a warp, k blocks, chunks: one after the other, products in clocks of
    tensor cores. first x: clocks until the first chunk is there. partial bytes: by multiprocessor. trips: of the join,
    clocks.
    """
    config = spec.config
    resident = gpu.resident(cut.warps, cut.shared_bytes, most_warps(spec, cut.chains))
    each = -(-len(cut.slices) * cut.splits // gpu.multiprocessors)
    waves = -(-each // resident)
    return {
        "launches": 1,
        "wavefronts": each * cut.split_blocks * _wavefronts(cut, spec),
        "products of a warp": waves * cut.split_blocks * config.v * cut.chains * cut.batch / 2,
        "k blocks": waves * cut.split_blocks,
        "first x": waves * cut.chunk_blocks * x_bytes(spec, cut.batch) / L2_BYTES,
        "chunks": waves * -(-cut.split_blocks // cut.chunk_blocks),
        "partial bytes": sum_bytes(cut.partials, cut.batch, row_blocks(spec)) / gpu.multiprocessors,
        "trips": join_trips(cut.partials, cut.batch, 1) * gpu.round_trip,
    }


def works(cut: Cut, product: Product[CodebookSpec], gpu: Gpu) -> tuple[Work, Work]:
    """What the launch that arranges x has to do, with what both take whatever they do, and the one that multiplies."""
    spec = product.spec
    clocks = weighted(terms(cut, spec, gpu), WEIGHTS)
    launches = {"launches": clocks.pop("launches")}
    codes = layout.k_blocks(spec) * spec.config.m * row_blocks(spec) * layout.block_bytes(spec)
    return Work(bytes_read=product.x_bytes, terms=launches), Work(
        bytes_read=codes + dequant_cut.book_and_scale_bytes(spec),
        bytes_written=product.y_bytes,
        terms=clocks,
        multiply_adds=product.multiply_adds,
    )


def _fixed_bytes(spec: CodebookSpec, warps: int, count: int) -> int:
    """Of shared memory whatever is in it of x: tables, codes ahead, counters."""
    config = spec.config
    lane = container_bits(config.b) * count  # bytes of a lane's codes of a k block and codebook
    ring = (8 if config.m == 1 else 4) * config.m * LANES * lane
    return dequant_cut.table_bytes(spec) + warps * ring + _COUNTER_BYTES


def _chunks(split_blocks: int, fixed: int, each: int, gpu: Gpu) -> list[int]:
    """K blocks of a chunk of x: as many as fit; as many as let two thread blocks share a multiprocessor; or few, so
    that the first is soon there."""
    alone = (gpu.shared_per_block - fixed) // each
    shared = (gpu.shared_per_multiprocessor // 2 - RESERVED - fixed) // each
    found = {split_blocks} if split_blocks <= alone else set()
    for most in (alone // 2, shared // 2, _SOON // each):
        if 1 <= most <= alone // 2:
            found.add(-(-split_blocks // -(-split_blocks // most)))  # of parts as near-equal as may be
    return sorted(found)


def _wavefronts(cut: Cut, spec: CodebookSpec) -> float:
    """Of shared memory, of a thread block in a k block: lookups, B of each product, x and codes as they come, codes as
    they are read."""
    v, m, largest = spec.config.v, spec.config.m, cut.slices.most_blocks
    groups = -(-2 * largest // (cut.chains * _GROUP_WARPS))  # warpgroups that multiply
    idle = groups * _GROUP_WARPS * cut.chains // 2 - largest  # blocks of rows that there are not: they take half
    lookups = (largest + idle / 2) * layout.STEPS * layout.TILES * m * (2 if v == 4 else 4 if v == 8 else 8)
    products = groups * cut.chains * v  # of 64 rows and 16 k
    codes = m * largest * layout.block_bytes(spec)
    return lookups + products * cut.batch / 4 + (x_bytes(spec, cut.batch) + 2 * codes) / 128
