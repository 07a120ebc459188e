"""LUT-GEMM's GPU kernel (Park et al., 2022): planes of signs look up sums of +-x in tables of shared memory.

Facts of the original kept here: a table of 256 fp16 for every 8 inputs, most of it made by adding 2x to entries that
are there; two neighbouring rows a thread, codes in words of 32 bits that lie row by row; a word's four entries added in
fp16; one row of x at a time; a grid of slices of rows and of parts of K. Better than there: sums go on in fp32 from a
word on; those of parts of K are added in their order, where the original has fp16 atomics and an output to be cleared
before; a thread block may have several tiles of K; up to 16 rows of x are one launch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from codegemm import kernels_cu
from codegemm.arrays import array_module
from codegemm.baselines.planes import core_of, planes_of, unfit
from codegemm.engines.cuda import rows
from codegemm.engines.cuda.gpu import GRID, LANES, Gpu
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.model import ISSUED, START, Work, balance, seconds
from codegemm.engines.cuda.steps import Launch, Scratch, Step, instance, structure
from codegemm.engines.cut import divisions
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.formats.weight import Spec
from codegemm.kernel import Product

SOURCE = "lutgemm.cu"
MAX_N = 16  # rows of x of a launch
MAX_WARPS = kernels_cu.constant(SOURCE, "most_threads") // LANES
WARP_ROWS = kernels_cu.constant(SOURCE, "warp_rows")  # of W
WORD_CODES = kernels_cu.constant(SOURCE, "word_codes")
MAX_WORDS = kernels_cu.constant(SOURCE, "most_words")  # of a run
ARGUMENTS = kernels_cu.structure(SOURCE, "Lutgemm")
_TILE_BYTES = 64 << 10  # of tables, at most
# Different words in the busiest bank, on average, of the entries of 32 random codes; fewer signs have a word a bank.
_CONFLICTS = {7: 2.0, 8: 2.77}
# Of a plane's run of 64 rows by the words of the layout, and of a table, counted in the compiled loops.
_INSTRUCTIONS = {0: 187.0, 1: 89.0, 2: 122.0, 4: 194.0}
_TABLE_INSTRUCTIONS = (16.0, 7.0)  # of a warp that makes some, and for each of their signs
# Clocks until a thread has the codes of its next run, and of x and the barriers around a tile's tables: guessed.
_RUN_LATENCY, _TILE_LATENCY = 800.0, 1000.0


class Lutgemm(CudaKernel[CodebookSpec, CodebookWeight]):
    """Planes of signs, 1 to 8 of a code, with any groups, and up to 16 rows of x.

    x is rounded to fp16. Beyond 65504 twice a number, or a sum of the numbers of four codes, becomes infinite or NaN.
    Up to 32 terms are added in fp16, eight in a table's entry and four entries: the error is about 7e-4 of the result's
    norm, whatever K is, more where sums are below fp16's normal numbers, 6e-5.
    """

    name = "lutgemm"
    weights = CodebookWeight
    folds = True

    def unfit_for(self, product: Product[CodebookSpec], gpu: Gpu) -> str | None:
        if product.n > MAX_N:
            return f"n={product.n}: it multiplies up to {MAX_N} rows of x, one at a time"
        return unfit(product.spec)

    def tolerance(self, product: Product[CodebookSpec]) -> float:
        return 3e-3

    def arrange(self, weight: CodebookWeight) -> Prepared:
        core, layout = core_of(weight), layout_of(weight.spec)
        arrays = {"codes": _arrange_codes(core.codes, layout), "scales": _arrange_scales(core.scales, layout)}
        return Prepared(weight.spec, weight.device, arrays)

    def steps(self, product: Product[CodebookSpec], gpu: Gpu, scratch: Scratch) -> list[Step]:
        return [launch(product, cut_for(product.spec, gpu), gpu, scratch)]


def launch(product: Product[Any], cut: Cut, gpu: Gpu, scratch: Scratch) -> Launch:
    """A product cut so."""
    layout = layout_of(product.spec)
    return rows.split_launch(
        product,
        cut.splits,
        scratch,
        structure(ARGUMENTS, product.spec, layout, cut),
        padded_rows=layout.padded_rows,
        source=SOURCE,
        instance=instance("lutgemm", layout.v, layout.words, product.dtype),
        grid=(cut.slices, cut.splits, product.n),
        threads=LANES * cut.warps,
        shared_bytes=cut.tile_runs * layout.table_bytes,
        work=work(cut, product, gpu),
    )


@dataclass(frozen=True)
class Layout:
    """How codes and scales lie: `Lutgemm` in lutgemm.cu.

    words: of a run, 0 where scales change within a word.
    """

    v: int
    planes: int
    out_features: int
    vectors: int
    group_vectors: int
    words: int

    @property
    def padded_rows(self) -> int:
        """Of W, whole warps'."""
        return -(-self.out_features // WARP_ROWS) * WARP_ROWS

    @property
    def run_words(self) -> int:
        """Of a row and plane in a run."""
        return max(self.words, 1)

    @property
    def ahead(self) -> int:
        """Runs of a plane whose codes are on their way at once."""
        return MAX_WORDS // self.run_words

    @property
    def runs(self) -> int:
        """Of the whole of K; the last is filled up."""
        return -(-self.vectors // (WORD_CODES * self.run_words))

    @property
    def groups(self) -> int:
        """Scales of a row and plane."""
        return self.vectors // self.group_vectors

    @property
    def group_runs(self) -> int:
        """Runs that share a scale; it says nothing where scales change within a word."""
        return -(-self.group_vectors // (WORD_CODES * self.run_words))

    @property
    def table_bytes(self) -> int:
        """Of a run's tables."""
        return WORD_CODES * self.run_words * (2 << self.v)

    @property
    def code_bytes(self) -> int:
        """Of all codes."""
        return WORD_CODES * self.run_words * self.runs * self.planes * self.padded_rows

    @property
    def scale_bytes(self) -> int:
        """Of all scales."""
        return 2 * self.groups * self.planes * self.padded_rows


def layout_of(spec: Spec) -> Layout:
    """Runs of as many words as divide a group's; where there is one group, whose last run is filled up, as it has."""
    planes, core = planes_of(spec)
    vectors, group = core.vectors // planes, core.group_vectors
    if vectors == group:
        words = min(1 << (-(-vectors // WORD_CODES) - 1).bit_length(), MAX_WORDS)
    else:
        words = 0 if group % WORD_CODES else math.gcd(group // WORD_CODES, MAX_WORDS)
    return Layout(core.config.v, planes, core.out_features, vectors, group, words)


@dataclass(frozen=True)
class Cut:
    """For each row of x `slices` x `splits` thread blocks of `warps`, each with 64 rows of W.

    tile_runs: a multiple of the layout's `ahead`, unless a split is one tile.
    """

    warps: int
    slices: int
    splits: int
    split_runs: int
    tile_runs: int


@lru_cache(maxsize=1024)
def cut_for(spec: Spec, gpu: Gpu) -> Cut:
    """The cut with the least estimated time of one row of x, among those, if there are any, that leave less than a
    tenth of the multiprocessors idle. Several rows are cut so, too: each has the same bits."""
    product: Product[Any] = Product.of(spec, 1, np.float16)
    found = list(candidates(layout_of(spec)))
    filling = [cut for cut in found if cut.slices * cut.splits > 0.9 * gpu.multiprocessors]
    return min(filling or found, key=lambda cut: seconds([work(cut, product, gpu)], gpu))


def candidates(layout: Layout) -> Iterator[Cut]:
    """Thread blocks of a few numbers of warps, splits that are as long as each other."""
    warps = layout.padded_rows // WARP_ROWS
    joined = layout.padded_rows // LANES <= rows.MAX_ROW_BLOCKS
    for slices in dict.fromkeys(-(-warps // most) for most in (MAX_WARPS, 8, 4)):
        for splits in divisions(layout.runs, GRID[1] if joined else 1):
            each = -(-layout.runs // splits)
            tile = _TILE_BYTES // layout.table_bytes // layout.ahead * layout.ahead
            yield Cut(-(-warps // slices), slices, splits, each, min(each, tile))


def work(cut: Cut, product: Product[Any], gpu: Gpu) -> Work:
    """What a product's launch has to do."""
    layout, n = layout_of(product.spec), product.n
    row_blocks, blocks = layout.padded_rows // LANES, n * cut.slices * cut.splits
    runs = n * layout.planes * layout.runs * layout.padded_rows // WARP_ROWS
    lookups = runs * 2 * WORD_CODES * layout.run_words  # of a warp
    stores = n * cut.slices * layout.runs * layout.table_bytes / 128
    fixed, each = _TABLE_INSTRUCTIONS
    makers = stores / max(1, 1 << layout.v >> 6)  # warps that make whole tables, of 64 entries or more
    wavefronts = lookups * _CONFLICTS.get(layout.v, 1.0) + stores + n * layout.code_bytes / 128
    instructions = runs * _INSTRUCTIONS[layout.words] + makers * (fixed + each * layout.v)
    spread = balance(blocks, gpu.multiprocessors)
    busy = max(wavefronts, instructions / ISSUED) / (gpu.multiprocessors * spread)
    held = layout.code_bytes + layout.scale_bytes
    again = (n - 1) * held if held <= gpu.l2_bytes else 0
    return Work(
        bytes_read=n * held + product.x_bytes,  # every row of x reads all codes
        bytes_written=product.y_bytes,
        multiply_adds=n * layout.vectors << layout.v,
        lookups=n * layout.out_features * layout.planes * layout.vectors,
        cached_bytes=again,
        l2_bytes=again + cut.slices * product.x_bytes + rows.sum_bytes(cut.splits, n, row_blocks),
        wavefronts=wavefronts,
        instructions=instructions,
        balance=spread,
        latency=START
        + max(0.0, _chain(cut, layout, blocks, gpu) - busy)
        + gpu.round_trip * rows.join_trips(cut.splits, n, WARP_ROWS // LANES),
    )


def _chain(cut: Cut, layout: Layout, blocks: int, gpu: Gpu) -> float:
    """Clocks in which threads wait for one thing after the other, whatever others do meanwhile."""
    resident = gpu.resident(cut.warps, cut.tile_runs * layout.table_bytes, MAX_WARPS)
    waves = -(-blocks // (gpu.multiprocessors * resident))
    tiles = -(-cut.split_runs // cut.tile_runs)
    return waves * (tiles * _TILE_LATENCY + cut.split_runs * layout.planes / layout.ahead * _RUN_LATENCY)


def _arrange_codes(codes: Any, layout: Layout) -> Any:
    """uint32 [run, plane, word, padded row] of codes [M, planes * vectors, 1]; filled up by code 0."""
    xp = array_module(codes)
    shape = layout.padded_rows, layout.planes, layout.runs * layout.run_words * WORD_CODES
    padded = xp.zeros(shape, np.uint8)
    padded[: layout.out_features, :, : layout.vectors] = codes.reshape(layout.out_features, layout.planes, -1)
    words = padded.reshape(-1, WORD_CODES).view(np.uint32)
    words = words.reshape(layout.padded_rows, layout.planes, layout.runs, layout.run_words)
    return xp.ascontiguousarray(words.transpose(2, 1, 3, 0))


def _arrange_scales(scales: Any, layout: Layout) -> Any:
    """float16 [group, plane, padded row] of scales [M, planes * groups]."""
    xp = array_module(scales)
    padded = xp.zeros((layout.padded_rows, layout.planes, layout.groups), np.float16)
    padded[: layout.out_features] = scales.reshape(layout.out_features, layout.planes, layout.groups)
    return xp.ascontiguousarray(padded.transpose(2, 1, 0))
