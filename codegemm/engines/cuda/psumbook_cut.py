"""How a Psumbook product is cut into thread blocks: pure functions of the shape and of the GPU's limits."""

from __future__ import annotations

from dataclasses import dataclass

from codegemm import kernels_cu
from codegemm.engines.cuda import psumbook_layout as layout
from codegemm.engines.cuda.gpu import CLUSTER, GRID, LANES, Gpu
from codegemm.engines.cuda.model import MEMORY_SHARE, Work, fastest, weighted
from codegemm.engines.cuda.rows import MAX_ROW_BLOCKS, Slices, join_trips, received_bytes, row_blocks, slices, sum_bytes
from codegemm.engines.cut import divisions
from codegemm.formats.codebook import CodebookSpec
from codegemm.kernel import Product

BATCHES = (1, 2, 4)  # rows of x that a compiled kernel has tables for
MAX_WARPS = kernels_cu.constant("psumbook.cu", "most_threads") // LANES  # that registers are enough for
LINE_BYTES = kernels_cu.constant("psumbook_layout.cuh", "line_bytes")
_TILE_LINES = 256  # centroids of a tile: 64 KiB
# What a cut's `terms` cost, in clocks, as `make gpu PART=cuts` fitted them to the times of many cuts on an H200.
WEIGHTS = {
    "launch": 1899.0,
    "waves": 911.3,
    "wavefronts of a warp": 9.382,
    "turns of a warp": 653.6,
    "tiles": 313.7,
    "rows of tables": 941.7,
    "stores": 0.364,
    "joins": 1346.0,
    "partial bytes": 0.1922,
    "trips": 1.09,
    "memory": 0.1849,
}


@dataclass(frozen=True)
class Cut:
    """A launch: `slices` x `splits` thread blocks, of which `cluster` neighbouring splits are a cluster.

    rows: position rows of a unit, 1 or 2 (psumbook_layout.cuh).
    """

    batch: int
    rows: int
    units: int
    units_per_tile: int
    units_per_split: int
    slices: Slices
    warps: int
    shared_bytes: int
    cluster: int = 1

    @property
    def splits(self) -> int:
        """Parts of K whose sums are added at the end."""
        return -(-self.units // self.units_per_split)

    @property
    def partials(self) -> int:
        """Sums that meet in the workspace, of each row: a cluster's splits have met before."""
        return self.splits // self.cluster


def kernel_batch(n: int) -> int:
    """The tables' rows of x for n rows."""
    return next(batch for batch in BATCHES if batch >= n)


def shared_bytes(spec: CodebookSpec, batch: int, rows: int, units_per_tile: int, blocks: int, cluster: int = 1) -> int:
    """Tables, powers of two of x, the sums of a slice of `blocks` blocks of rows, and what a cluster sends."""
    tables = units_per_tile * (LINE_BYTES << spec.config.b)
    unscale = 4 * units_per_tile * rows * batch if batch > 1 else 0
    return tables + unscale + 4 * batch * LANES * blocks + received_bytes(batch, blocks, cluster)


def cut_for(spec: CodebookSpec, n: int, gpu: Gpu) -> Cut:
    """The cut with the least estimated time among those that fit the GPU."""
    return fastest(
        candidates, estimate, spec, kernel_batch(n), gpu
    )  # the same for all n that tables of a batch are made for


def estimate(cut: Cut, spec: CodebookSpec, gpu: Gpu) -> float:
    """Seconds of a product."""
    return sum(weighted(terms(cut, spec, gpu), WEIGHTS).values()) / gpu.clock


def terms(cut: Cut, spec: CodebookSpec, gpu: Gpu) -> dict[str, float]:
    """What a product's time is made of, on the busiest multiprocessor.

    waves: of thread blocks. wavefronts: of lookups and codes, by warp. turns: of a warp, 32 rows in a unit
    each. tiles: one after the other; rows of tables: of position and of x. stores: wavefronts of tables. joins: one
    where sums meet in memory; partial bytes: of those, by multiprocessor; trips: of their join, clocks. memory: clocks
    in which the codes could come.
    """
    blocks = cut.slices.most_blocks
    resident = gpu.resident(cut.warps, cut.shared_bytes, MAX_WARPS)
    each = -(-len(cut.slices) * cut.splits // gpu.multiprocessors)
    waves = -(-each // resident)
    tiles = waves * -(-cut.units_per_split // cut.units_per_tile)
    turns = -(-blocks // cut.warps)
    wavefronts = each * cut.units_per_split * blocks * _wavefronts(cut, spec)
    return {
        "launch": 1,
        "waves": waves,
        "wavefronts of a warp": wavefronts / (cut.warps * min(resident, each)),
        "turns of a warp": waves * cut.units_per_split * turns,
        "tiles": tiles,
        "rows of tables": tiles * cut.units_per_tile * cut.rows * cut.batch,
        "stores": each * cut.units_per_split * spec.config.centroids * cut.rows * (2 if cut.batch == 4 else 1),
        "joins": int(cut.partials > 1),
        "partial bytes": sum_bytes(cut.partials, cut.batch, row_blocks(spec)) / gpu.multiprocessors,
        "trips": join_trips(cut.partials, cut.batch, -(-blocks // cut.cluster // cut.warps)) * gpu.round_trip,
        "memory": spec.packed_bits / 8 / (MEMORY_SHARE * gpu.bandwidth) * gpu.clock,
    }


def work(cut: Cut, product: Product[CodebookSpec], gpu: Gpu) -> Work:
    """What a product's launch has to do."""
    spec, config = product.spec, product.spec.config
    blocks = row_blocks(spec)
    codes = layout.k_blocks(spec) * config.m * blocks * layout.block_bytes(config.b)
    books = 2 * len(spec.part_rows) * config.m * config.v << config.b
    scales = 2 * LANES * blocks * layout.stored_scales(spec)
    return Work(
        bytes_read=codes + books + scales + product.x_bytes,
        bytes_written=product.y_bytes,
        terms=weighted(terms(cut, spec, gpu), WEIGHTS),
        # Each entry of a table is an inner product of v weights; every table is made once at least.
        multiply_adds=product.n * len(spec.part_rows) * spec.in_features * config.m * config.centroids,
        lookups=product.n * spec.out_features * spec.vectors * config.m,
    )


def _wavefronts(cut: Cut, spec: CodebookSpec) -> float:
    """Of 32 rows in a unit: lookups, codes and scales."""
    lookups = layout.POSITIONS * cut.rows * (2 if cut.batch == 4 else 1)
    return lookups + cut.rows * layout.block_bytes(spec.config.b) / 128 + 4


def candidates(spec: CodebookSpec, n: int, gpu: Gpu) -> list[Cut]:
    """Every cut worth an estimate; at least one, whatever the shape."""
    batch = kernel_batch(n)
    total = row_blocks(spec)
    found = []
    # One position row of a unit where two would not fit its line, or their scales the registers.
    for rows in (1,) if batch == 4 or layout.phases(spec) > 8 else (1, 2):
        units = -(-layout.k_blocks(spec) * spec.config.m // rows)
        most_tile = min(units, _TILE_LINES >> spec.config.b)
        for splits in divisions(units, GRID[-1]):
            per_split = -(-units // splits)
            tile = min(most_tile, per_split)
            fixed = shared_bytes(spec, batch, rows, tile, 0)
            room = (gpu.shared_per_block - fixed) // (4 * batch * LANES)  # for blocks of rows
            shape = batch, rows, units, tile, per_split
            if splits == 1 or total <= MAX_ROW_BLOCKS:
                for turns in range(1, 5):
                    wanted = -(-total // max(1, gpu.multiprocessors * turns // splits))
                    found += [(*shape, max(1, min(room, wanted)), warps, 1) for warps in (8, MAX_WARPS)]
            found += [(*shape, blocks, MAX_WARPS, cluster) for cluster, blocks in _clusters(splits, total, room, gpu)]
    return [
        Cut(batch, rows, units, tile, per_split, slices(spec, blocks), warps,
            shared_bytes(spec, batch, rows, tile, blocks, cluster), cluster)
        for batch, rows, units, tile, per_split, blocks, warps, cluster in dict.fromkeys(found)
    ]  # fmt: skip


def _clusters(splits: int, total: int, room: int, gpu: Gpu) -> list[tuple[int, int]]:
    """Sizes of clusters that so many splits can be, with the blocks of 32 rows of a slice: all clusters run at once."""
    found = []
    for cluster in range(2, CLUSTER + 1):
        groups = splits // cluster
        most_slices = gpu.clusters_of(cluster) // max(1, groups)
        if splits % cluster or not most_slices or (groups > 1 and total > MAX_ROW_BLOCKS):
            continue
        blocks = -(-total // most_slices)
        if 2 * blocks + cluster <= room:  # their sums, and what is received of them
            found.append((cluster, blocks))
    return found
