"""Other tiles for the Psumbook kernel: t_w columns whose tables a thread block or task builds at a time, t_h rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from codegemm.engines import cpu, cuda
from codegemm.engines.cpu import psumbook_layout
from codegemm.engines.cpu.psumbook_layout import Cut, cut_for
from codegemm.engines.cuda import psumbook, psumbook_cut
from codegemm.engines.cuda import psumbook_layout as gpu_layout
from codegemm.engines.cuda.gpu import LANES, Gpu
from codegemm.engines.cuda.rows import slices
from codegemm.engines.cuda.steps import Scratch, Step
from codegemm.formats.codebook import CodebookSpec
from codegemm.formats.format import random_weight
from codegemm.kernel import Kernel, Product
from codegemm.reproduction.cells import shape_of
from codegemm.reproduction.experiments import MICRO
from codegemm.reproduction.lab import Lab, codebook_spec
from codegemm.reproduction.paper import published
from codegemm.reproduction.table import Table, as_fast_as

NAME = "table7"
SHAPE = (8192, 8192)
_BASE = 2  # the narrowest tiles that both engines have


class CpuTiles(cpu.Psumbook):
    """The CPU's kernel with tiles of so many k-vectors and slices of so many rows."""

    name = "psumbook_tiles"

    def __init__(self, tile_vectors: int, slice_rows: int) -> None:
        self._sizes = tile_vectors, slice_rows

    def cut(self, spec: CodebookSpec) -> Cut:
        return cut_for(spec, *self._sizes)


class CudaTiles(cuda.Psumbook):
    """The GPU's kernel with thread blocks of such tiles."""

    name = "psumbook_tiles"

    def __init__(self, t_w: int, t_h: int) -> None:
        self._sizes = t_w, t_h

    def steps(self, product: Product[CodebookSpec], gpu: Gpu, scratch: Scratch) -> list[Step]:
        cut = gpu_cut(product.spec, *self._sizes, gpu)
        assert cut is not None
        return [psumbook.launch(product, cut, gpu, scratch)]


def table(lab: Lab) -> Table:
    """Microseconds by t_w x t_h; None where the kernel has no such tiles."""
    paper = published(NAME)
    tiles = dict(zip(paper.columns, _tiles()))
    ours, noisy = [], set()
    for config in paper.rows:
        spec = codebook_spec(SHAPE, config)
        there = {column: each for column, each in tiles.items() if not lab.on_gpu or gpu_cut(spec, *each, lab.gpu)}
        if lab.predicts:
            seconds = {column: _estimated(spec, each, lab.gpu) for column, each in there.items()}
        else:
            weight = random_weight(SHAPE, config)
            timed = dict(zip(there, lab.times([(_kernel(lab, spec, each), weight) for each in there.values()])))
            seconds = {column: timing.median for column, timing in timed.items()}
            noisy |= {(config, column) for column, timing in timed.items() if timing.noisy}
        ours.append([MICRO * seconds[column] if column in seconds else None for column in tiles])
    return Table.beside(
        NAME,
        "Tiles of t_w columns by t_h rows, 8192 x 8192, one row of inputs",
        "Wider tiles build more tables at a time, higher ones share them among more rows; tables of small tiles are "
        "nearer to where they are looked up.",
        ours,
        baseline=paper.columns[_BASE],
        in_terms=f"times as fast as {paper.columns[_BASE]}",
        predicted=bool(lab.predicts),
        noisy=frozenset(noisy),
        notes=tuple(_chosen(lab, config) for config in paper.rows),
        ratio=as_fast_as(_BASE),
    )


def builds(lab: Lab) -> Iterator[Callable[[], object]]:
    """What measuring on a GPU compiles."""
    for config, (t_w, t_h) in product(published(NAME).rows, _tiles()):
        spec = codebook_spec(SHAPE, config)
        if gpu_cut(spec, t_w, t_h, lab.gpu):
            yield from CudaTiles(t_w, t_h).builds(Product.of(spec, 1, lab.settings.dtype), lab.settings.device)


def gpu_cut(spec: CodebookSpec, t_w: int, t_h: int, gpu: Gpu) -> psumbook_cut.Cut | None:
    """A unit of one or two rows of positions a tile, and as many to a split as fill the multiprocessors once.

    None where such a unit is not t_w columns.
    """
    rows, rest = divmod(t_w, _unit_columns(spec))
    if rest or rows not in (1, 2):
        return None
    units, blocks = -(-gpu_layout.k_blocks(spec) * spec.config.m // rows), t_h // LANES
    parts = slices(spec, blocks)
    per_split = -(-units // max(1, gpu.multiprocessors // len(parts)))
    shared = psumbook_cut.shared_bytes(spec, 1, rows, 1, blocks)
    return psumbook_cut.Cut(1, rows, units, 1, per_split, parts, psumbook_cut.MAX_WARPS, shared)


def _tiles() -> list[tuple[int, int]]:
    """The paper's."""
    return [shape_of(column) for column in published(NAME).columns]


def _kernel(lab: Lab, spec: CodebookSpec, tile: tuple[int, int]) -> Kernel:
    t_w, t_h = tile
    return CudaTiles(t_w, t_h) if lab.on_gpu else CpuTiles(t_w // spec.config.v, t_h)


def _estimated(spec: CodebookSpec, tile: tuple[int, int], gpu: Gpu) -> float:
    """Seconds, of tiles that there are."""
    cut = gpu_cut(spec, *tile, gpu)
    assert cut is not None
    return psumbook_cut.estimate(cut, spec, gpu)


def _chosen(lab: Lab, config: str) -> str:
    """What the kernel takes of itself."""
    spec = codebook_spec(SHAPE, config)
    if lab.on_gpu:
        cut = psumbook_cut.cut_for(spec, 1, lab.gpu)
        width, height = cut.units_per_tile * cut.rows * _unit_columns(spec), cut.slices.most_blocks * LANES
        narrow = f"; its tiles have {_unit_columns(spec)} columns or twice as many"
    else:
        its = psumbook_layout.cut_for(spec)
        width = int((its.tiles[1:] - its.tiles[:-1]).max()) * spec.config.v
        height, narrow = int((its.slices[:, 2] - its.slices[:, 1]).max()), ""
    return f"{config}: the kernel itself takes {width} x {height}{narrow}."


def _unit_columns(spec: CodebookSpec) -> int:
    """Columns of a row of positions, by which a GPU's kernel builds tables."""
    return gpu_layout.POSITIONS * spec.config.v // spec.config.m
