"""How a dequantising product is cut into thread blocks: pure functions of the shape and of the GPU's limits."""

from __future__ import annotations

from dataclasses import dataclass

from codegemm import kernels_cu
from codegemm.engines.cuda import dequant_layout as layout
from codegemm.engines.cuda.gpu import CLUSTER, GRID, LANES, Gpu
from codegemm.engines.cuda.model import L2_BYTES, Work, fastest, weighted
from codegemm.engines.cuda.rows import MAX_ROW_BLOCKS, Slices, join_trips, received_bytes, row_blocks, slices, sum_bytes
from codegemm.engines.cut import divisions
from codegemm.formats.codebook import CodebookSpec
from codegemm.kernel import Product

BATCHES = (8, 16, 32, 64)  # rows of x that a compiled kernel multiplies at once
TILE = 16  # rows of x of an mma, but of the smallest kernel's
MAX_N = 64
LINE_BYTES = kernels_cu.constant("dequant_layout.cuh", "line_bytes")
_COPIED = 8  # pieces of centroids of a thread, that are counted as one load of tables
MIN_GROUP = 16  # weights
STAGE_BYTES = kernels_cu.constant("dequant_layout.cuh", "stage_bytes")  # of a warp
_CHUNK_BYTES = 32 << 10  # of x at a time, more where a split has no more
# What a cut's `terms` cost, in clocks, as `make gpu PART=cuts` fitted them to the times of many cuts on an H200.
WEIGHTS = {
    "starts": 1596.0,
    "loads of tables": 580.2,
    "wavefronts": 1.027,
    "k blocks": 817.2,
    "chunks": 2486.0,
    "partial bytes": 0.07348,
    "trips": 0.8404,
}


@dataclass(frozen=True)
class Cut:
    """A launch: `slices` x `passes` x `splits` thread blocks, all splits of a slice a cluster or none.

    batch: rows of x that a pass over W multiplies. shared: whether codebooks are in shared memory. chunk_blocks: k
    blocks whose x is in shared memory together. received: where there is what a cluster's blocks send.
    """

    batch: int
    passes: int
    shared: bool
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


def fits(spec: CodebookSpec) -> bool:
    """Whether the fast form multiplies such weights: vectors that fill fragments, groups of at least a step of v=4."""
    return spec.config.v in layout.V and (spec.groups == 1 or spec.config.g >= MIN_GROUP)


def kernel_batch(spec: CodebookSpec, n: int, shared: bool) -> int:
    """Rows of x that a pass over W multiplies, of n: as many as registers hold sums of."""
    long, several = spec.config.v == 16, layout.phases(spec) > 1
    most = 16 if several and (long or spec.config.m > 4) else 32 if long or several or shared else 64
    return next(batch for batch in BATCHES if batch >= min(n, most))


def is_lean(spec: CodebookSpec, batch: int, shared: bool) -> bool:
    """Whether registers leave room for most: `lean` of `DequantShape`."""
    config = spec.config
    return shared and config.m <= 2 and batch <= 16 and config.v < 16 and layout.phases(spec) <= 1


def in_shared_memory(spec: CodebookSpec, gpu: Gpu) -> bool:
    """Whether the codebooks' copies and some of x fit there."""
    return spec.config.b <= 8 and table_bytes(spec) + x_bytes(spec, 32) <= gpu.shared_per_block


def warp_blocks(spec: CodebookSpec, batch: int, shared: bool) -> int:
    """Blocks of 32 rows of a warp: `row_blocks` of `DequantShape`."""
    sums_fit = spec.config.v <= 8 and batch == 32 and shared and layout.phases(spec) <= 1
    return 2 if is_lean(spec, batch, shared) or (spec.config.m == 1 and sums_fit) else 1


def most_warps(spec: CodebookSpec, batch: int, shared: bool) -> int:
    """Of a thread block, that registers are enough for: `most_threads` of `DequantShape`."""
    return 16 if is_lean(spec, batch, shared) and spec.config.m * spec.config.v == 4 else 8


def table_bytes(spec: CodebookSpec) -> int:
    """Of the codebooks' copies."""
    m = spec.config.m
    return (m if spec.config.v == 16 else -(-m // 2)) * spec.config.centroids * LINE_BYTES


def x_bytes(spec: CodebookSpec, batch: int) -> int:
    """Of a k block's fragments and powers of two."""
    return layout.STEPS * (spec.config.v // 4) * batch * LANES + 4 * batch


def cut_for(spec: CodebookSpec, n: int, gpu: Gpu) -> Cut:
    """The cut with the least estimated time among those that fit the GPU."""
    tiles = n if n <= BATCHES[0] else -(-n // TILE) * TILE
    return fastest(candidates, estimate, spec, max(tiles, BATCHES[0]), gpu)  # the same for all n that fill as many


def candidates(spec: CodebookSpec, n: int, gpu: Gpu) -> list[Cut]:
    """Every cut worth an estimate; at least one, whatever the shape."""
    shared = in_shared_memory(spec, gpu)
    batch = kernel_batch(spec, n, shared)
    passes = -(-n // batch)
    each, blocks = x_bytes(spec, batch), layout.k_blocks(spec)
    tables = table_bytes(spec) if shared else 0
    # Centroids from L2: two blocks of four warps took longer for 16 rows of x than one of eight for 32.
    allowed = [warps for warps in ((4, 8, 16) if shared else (8, 16)) if warps <= most_warps(spec, batch, shared)]
    found = []
    for splits in divisions(blocks, GRID[-1]):
        per_split = -(-blocks // splits)
        for warps in allowed:
            most_rows = warps * warp_blocks(spec, batch, shared)
            for rows, cluster in _slicings(row_blocks(spec), splits, most_rows, passes, gpu):
                received = received_bytes(batch, rows, cluster)
                most_chunk = (gpu.shared_per_block - tables - received) // each
                chunks = {min(per_split, most_chunk), min(per_split, most_chunk, max(1, _CHUNK_BYTES // each))}
                found += [(warps, rows, per_split, chunk, received, cluster) for chunk in chunks if chunk > 0]
    cuts = []
    for warps, rows, per_split, chunk, received, cluster in dict.fromkeys(found):
        before = max(tables + chunk * each, warps * STAGE_BYTES)
        if before + received > gpu.shared_per_block:
            continue
        cuts.append(
            Cut(batch, passes, shared, warps, blocks, per_split, chunk, slices(spec, rows), before, before + received,
                cluster)
        )  # fmt: skip
    return cuts


def _slicings(total: int, splits: int, most_rows: int, passes: int, gpu: Gpu) -> list[tuple[int, int]]:
    """Blocks of 32 rows that a slice may have, of `total` and at most `most_rows`, and splits that are a cluster: one,
    or all where as many clusters run at once as have all rows."""
    found = []
    if splits == 1 or total <= MAX_ROW_BLOCKS:
        wanted = [-(-total // max(1, gpu.multiprocessors * turns // splits)) for turns in range(1, 4)]
        found = [(min(rows, most_rows), 1) for rows in wanted]
    at_once = gpu.clusters_of(splits) // passes if 1 < splits <= CLUSTER else 0
    if at_once and -(-total // at_once) <= most_rows:
        found.append((-(-total // at_once), splits))
    return found


def estimate(cut: Cut, spec: CodebookSpec, gpu: Gpu) -> float:
    """Seconds of a product."""
    return sum(weighted(terms(cut, spec, gpu), WEIGHTS).values()) / gpu.clock


def terms(cut: Cut, spec: CodebookSpec, gpu: Gpu) -> dict[str, float]:
    """What a product's time is made of, on the busiest multiprocessor.

    starts: one, unless the next launch's thread blocks find room beside this one's and start meanwhile. loads of
    tables, k blocks, chunks: one after the other. wavefronts: of lookups and fragments. partial bytes: by
    multiprocessor. trips: of the join, clocks, for a pass's rows of x, by which the times of several passes are told
    best.
    """
    resident = gpu.resident(cut.warps, cut.shared_bytes, most_warps(spec, cut.batch, cut.shared))
    each = -(-len(cut.slices) * cut.splits * cut.passes // gpu.multiprocessors)
    waves, blocks = -(-each // resident), cut.slices.most_blocks
    wavefronts, l2_bytes = _wavefronts(cut, spec, blocks)
    rows = cut.batch * cut.passes
    copies, pieces = (16 if spec.config.v == 4 else 8), (2 if spec.config.v == 16 else 1)
    copied = spec.config.m * spec.config.centroids * pieces * copies if cut.shared else 0  # pieces of centroids
    return {
        "starts": int(resident <= each),
        "loads of tables": waves * -(-copied // (_COPIED * LANES * cut.warps)),
        "wavefronts": each * cut.split_blocks * (wavefronts + l2_bytes / L2_BYTES),
        "k blocks": waves * cut.split_blocks,
        "chunks": waves * -(-cut.split_blocks // cut.chunk_blocks),
        "partial bytes": sum_bytes(cut.partials, rows, row_blocks(spec)) / gpu.multiprocessors,
        "trips": join_trips(cut.partials, cut.batch, -(-blocks // cut.warps)) * gpu.round_trip,
    }


def work(cut: Cut, product: Product[CodebookSpec], gpu: Gpu) -> Work:
    """What a product's launch has to do."""
    spec, blocks = product.spec, row_blocks(product.spec)
    codes = layout.k_blocks(spec) * spec.config.m * blocks * layout.block_bytes(spec)
    return Work(
        bytes_read=codes + book_and_scale_bytes(spec) + product.x_bytes,
        bytes_written=product.y_bytes,
        terms=weighted(terms(cut, spec, gpu), WEIGHTS),
        multiply_adds=product.multiply_adds,
    )


def book_and_scale_bytes(spec: CodebookSpec) -> int:
    """Of the codebooks, and of the scales with those of rows that fill up blocks of 32."""
    books = 2 * len(spec.part_rows) * spec.config.m * spec.config.v << spec.config.b
    return books + 2 * LANES * row_blocks(spec) * spec.groups


def _wavefronts(cut: Cut, spec: CodebookSpec, blocks: int) -> tuple[float, float]:
    """Of a slice of `blocks` blocks of 32 rows in a k block: wavefronts of lookups and fragments, and bytes of L2."""
    v, m = spec.config.v, spec.config.m
    pieces, quarters = (2 if v == 16 else 1), (1 if v == 4 else 2)
    lookups = blocks * layout.STEPS * layout.TILES * m * pieces
    each = 1 if cut.shared and (v < 16 or m <= 2) else m
    fragments = min(cut.warps, blocks) * layout.STEPS * pieces * quarters * cut.batch / 16 * each
    if cut.shared:
        return lookups * (2 if v == 4 else 4) + 4 * fragments, 0
    return 4 * fragments, lookups * (256 if v == 4 else 512)
