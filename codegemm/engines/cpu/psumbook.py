"""The Psumbook kernel (CodeGEMM): tables of a K tile in L1, codes streamed once, scales per group."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_int
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.devices import Device
from codegemm.engines import cut, declarations
from codegemm.engines.cpu import compiler, isa, library
from codegemm.engines.cpu.kernel import LOOKUP_SECONDS, CpuKernel, Prepared
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Cost, Product

SOURCE = compiler.SOURCES / "psumbook.cpp"
BATCH = declarations.constant(SOURCE, "batch")  # rows of x that share tables of words
MAX_B = 8
# Rows whose codes of a position lie side by side, and of which whole groups are stored; see lookup.hpp.
BLOCK_ROWS = declarations.constant(SOURCE, "block_rows")
GROUP_ROWS = declarations.constant(SOURCE, "group_rows")
# A tile's table for one row of x in float; in bytes it fits L1 beside the codes.
TABLE_BYTES = declarations.constant(SOURCE, "max_table_bytes")
FINISHED_ROWS = declarations.constant(SOURCE, "finished_rows")  # that a task adds up at the end
MAX_POSITIONS = declarations.constant(SOURCE, "max_positions")  # of a tile: sums of bytes hold no more
_ENTRIES = tuple(declarations.constant(SOURCE, f"{size}_entries") for size in ("few", "some", "most"))  # of a table
_TASK_LOOKUPS = 1 << 16  # some tens of microseconds
_MAX_TASKS = 32
_MIN_SLICE_ROWS = 4096  # every slice makes the tables again
_MAX_PIECES = 16  # of K: each adds a pass over the output
_SEEN = 128  # rows and positions whose codes are compared
_DEVIATIONS = 3.72  # standard ones, beyond which a normally distributed number is one time in 10,000

# Rows of x up to which each has tables of bytes, by instruction set and bytes of an entry; more share words.
_BYTES_UP_TO = {"vbmi": {2: 4, 1: 8}, "avx512": {2: 2, 1: 3}, "avx2": {2: 2, 1: 3}, "neon": {2: 2, 1: 3}}
PsumbookArgs = declarations.structure(SOURCE, "PsumbookArgs")


@dataclass(frozen=True)
class Cut:
    """Bounds of the tiles in k-vectors, of the pieces in tiles, and the slices of rows.

    A slice is (part, first row, end row, first padded row, end padded row): rows are padded to whole groups of
    GROUP_ROWS.
    """

    tiles: npt.NDArray[np.int32]
    pieces: npt.NDArray[np.int32]
    slices: npt.NDArray[np.int32]

    @property
    def padded_rows(self) -> int:
        """Rows of all slices with their padding."""
        return int(self.slices[-1, 4])

    def pad(self, rows: npt.NDArray) -> npt.NDArray:
        """`rows` [M, ...] in the order of the padded rows; padding repeats a slice's last row."""
        index = [
            np.minimum(np.arange(end_padded - first_padded) + first, end - 1)
            for _, first, end, first_padded, end_padded in self.slices
        ]
        return rows[np.concatenate(index)]

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Bounds of all blocks of padded rows, up to BLOCK_ROWS each."""
        for *_, first, end in self.slices:
            for start in range(first, end, BLOCK_ROWS):
                yield start, min(start + BLOCK_ROWS, end)


def table_entries(b: int) -> int:
    """Entries of a position's table."""
    return next(entries for entries in _ENTRIES if entries >= 1 << b)


def place_in_group() -> npt.NDArray[np.int64]:
    """[GROUP_ROWS]: the row whose code is at each place of a group; see lookup.hpp."""
    return np.arange(GROUP_ROWS).reshape(2, -1).T.ravel()


@lru_cache
def cut_for(spec: CodebookSpec) -> Cut:
    """The cut of a product: tiles that fit L1 and respect groups, pieces and slices of enough work each."""
    config = spec.config
    positions = min(TABLE_BYTES // (4 * table_entries(config.b)), MAX_POSITIONS)
    most = max(1, positions // config.m)
    group = spec.group_vectors
    if group <= most:
        tiles = group * cut.split(spec.groups, most // group)
    else:
        inner = cut.split(group, most)[:-1]
        starts = (np.arange(spec.groups)[:, None] * group + inner).ravel()
        tiles = np.append(starts, spec.vectors)
    tasks = min(-(-spec.out_features * spec.vectors * config.m // _TASK_LOOKUPS), _MAX_TASKS)
    pieces = cut.split(len(tiles) - 1, -(-(len(tiles) - 1) // min(tasks, _MAX_PIECES)))
    rows = max(-(-spec.out_features // (tasks // (len(pieces) - 1))), _MIN_SLICE_ROWS)
    slices = cut.row_slices(spec.part_rows, -(-rows // BLOCK_ROWS) * BLOCK_ROWS, BLOCK_ROWS)
    padded = -(-(slices[:, 2] - slices[:, 1]) // GROUP_ROWS) * GROUP_ROWS
    ends = np.cumsum(padded)
    padded_slices = np.column_stack([slices, ends - padded, ends]).astype(np.int32)
    return Cut(tiles.astype(np.int32), pieces, padded_slices)


def arrange_codes(codes: npt.NDArray[np.uint8], plan: Cut) -> npt.NDArray[np.uint8]:
    """codes [M, vectors, m] -> [tile][block][position][row of the block], flat."""
    m = codes.shape[2]
    padded = plan.pad(codes).reshape(plan.padded_rows, -1)
    by_place = padded.reshape(-1, GROUP_ROWS, padded.shape[1])[:, place_in_group()].reshape(padded.shape)
    arranged, at = np.empty(padded.size, np.uint8), 0
    for first, end in pairwise(m * plan.tiles.astype(np.int64)):
        for row, end_row in plan.blocks():
            block = by_place[row:end_row, first:end].T
            arranged[at : at + block.size].reshape(block.shape)[...] = block
            at += block.size
    return arranged


def _scaled(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Rows of x under powers of two that bring their largest numbers near 1, and the inverse powers [n, 1]."""
    with np.errstate(invalid="ignore"):
        exponents = np.clip(np.frexp(abs(x).max(1, keepdims=True))[1], -126, 126)
        return np.ldexp(x, -exponents), np.ldexp(np.float32(1), exponents)


def error_margin(codes: npt.NDArray[np.uint8]) -> float:
    """How many times what is expected the square of a product's error may be, but for one time in 10,000.

    codes: [M, vectors, m]. Rounding errors of different entries are independent, so a sum of their squares over the
    rows is chi-square distributed, with as many degrees of freedom as there are rows, or fewer where these look up the
    same entries: of a quantile of it, by Wilson and Hilferty's approximation.
    """
    some = codes.reshape(len(codes), -1)
    some = some[:: -(-len(some) // _SEEN), :: -(-some.shape[1] // _SEEN)]
    shared = np.array([(some == row).mean(1) for row in some])  # of the codes of two rows
    others = max(shared.size - len(some), 1)
    spread = 2 / 9 * (1 / len(codes) + ((shared**2).sum() - len(some)) / others)
    return float((1 - spread + _DEVIATIONS * np.sqrt(spread)) ** 3)


class Psumbook(CpuKernel[CodebookSpec, CodebookWeight]):
    """Builds the table of all centroids' inner products with x, tile by tile, and gathers by the codes."""

    name = "psumbook"
    weights = CodebookWeight
    automatic = True
    source = SOURCE
    planes = 2  # bytes of an entry

    def refuses(self, product: Product[CodebookSpec], device: Device) -> str | None:
        b = product.spec.config.b
        if b > MAX_B:
            return f"b={b}: its tables hold 2^b entries a position, b up to {MAX_B}"
        return super().refuses(product, device)

    def prepare(self, weight: CodebookWeight, device: Device) -> Prepared[CodebookSpec]:
        """Codes [tile][block][position][row of the block], codebooks [parts, m, v, entries] in float32, scales
        [groups, padded rows] and the squares of them, summed over a slice [slices, groups], and the cut."""
        spec = weight.spec
        plan = cut_for(spec)
        books = weight.part_codebooks.astype(np.float32).swapaxes(-1, -2)
        # Entries that no code names must not be larger than those that some do.
        padded = np.empty((*books.shape[:-1], table_entries(spec.config.b)), np.float32)
        padded[..., : books.shape[-1]] = books
        padded[..., books.shape[-1] :] = books[..., -1:]
        squares = [np.square(weight.scales[first:end].astype(np.float32)).sum(0) for _, first, end, *_ in plan.slices]
        arguments = library.Arguments(
            PsumbookArgs,
            {
                "codes": arrange_codes(weight.codes, plan),
                "codebooks": padded,
                "scales": np.ascontiguousarray(plan.pad(weight.scales).T),
                "squares": np.array(squares, np.float32),
                "tiles": plan.tiles,
                "pieces": plan.pieces,
                "slices": plan.slices,
            },
            spec,
            spec.config,
            plan,
            piece_count=len(plan.pieces) - 1,
            slice_count=len(plan.slices),
            rows=spec.out_features,
            entries=padded.shape[-1],
            margin=error_margin(weight.codes),
        )
        return Prepared(spec, arguments)

    def workspace(self, product: Product[CodebookSpec], device: Device) -> int:
        spec, plan = product.spec, cut_for(product.spec)
        pieces, slices = len(plan.pieces) - 1, len(plan.slices)
        finishing = slices * -(-int(np.diff(plan.slices[:, 1:3]).max()) // FINISHED_ROWS)
        floats = 2 + 2 * spec.in_features + pieces * plan.padded_rows
        return BATCH * (8 * (pieces * slices + finishing) + 4 * floats + spec.vectors)

    def function(self, n: int) -> Any:
        entry = "psumbook_bytes" if n <= self._bytes_up_to() else "psumbook_words"
        return library.function(self.source, entry, PsumbookArgs, c_int)

    def run_compiled(self, function: Any, prepared: Any, x: Any, out: Any, workspace: Any, bias: Any = None) -> None:
        prepared.arguments.call(function, x, out, workspace, self.planes, bias=bias)

    def run_numpy(self, prepared: Prepared[CodebookSpec], x: Any, out: Any, workspace: Any) -> None:
        """The same algorithm where there is no compiler: one table of floats a tile, gathered for a block at once."""
        spec, config, arrays = prepared.spec, prepared.spec.config, prepared.arguments.arrays
        plan = cut_for(spec)
        x32, powers = _scaled(x.astype(np.float32))
        x32 = x32.reshape(len(x), spec.vectors, config.v)
        group = spec.group_vectors
        row_at = place_in_group()
        sums, offset = np.zeros((len(x), plan.padded_rows), np.float32), 0
        part_of = {first: part for part, _, _, begin, stop in plan.slices for first in range(begin, stop, BLOCK_ROWS)}
        with np.errstate(over="ignore", invalid="ignore"):
            for first, end in pairwise(plan.tiles):
                width = int(end - first) * config.m
                step = min(end - first, group) * config.m
                # [parts, n, position, centroid]
                tables = np.einsum("njt,pmti->pnjmi", x32[:, first:end], arrays["codebooks"])
                tables = tables.reshape(len(tables), len(x), width, -1)
                for begin, stop in plan.blocks():
                    codes = arrays["codes"][offset : offset + width * (stop - begin)].reshape(width, -1, GROUP_ROWS)
                    offset += codes.size
                    by_row = np.empty_like(codes)
                    by_row[:, :, row_at] = codes
                    entries = tables[part_of[begin]][:, np.arange(width), by_row.reshape(width, -1).T]
                    by_group = entries.reshape(len(x), stop - begin, -1, step).sum(-1)
                    scales = arrays["scales"][first // group : first // group + by_group.shape[-1], begin:stop]
                    sums[:, begin:stop] += np.einsum("nrg,gr->nr", by_group, scales.astype(np.float32))
            for _, row, end_row, begin, _ in plan.slices:
                out[:, row:end_row] = sums[:, begin : begin + end_row - row] * powers

    def cost(self, product: Product[CodebookSpec], device: Device) -> Cost:
        spec, config = product.spec, product.spec.config
        rows = cut_for(spec).padded_rows
        codes = rows * spec.vectors * config.m
        books = 4 * len(spec.part_rows) * config.m * config.v * table_entries(config.b)
        return Cost(codes + books + 2 * rows * spec.groups + product.x_bytes, product.y_bytes)

    def estimate(self, product: Product[CodebookSpec], device: Device) -> float:
        spec, n = product.spec, product.n
        lookups = spec.out_features * spec.vectors * spec.config.m
        position_tables = len(cut_for(spec).slices) * spec.vectors * spec.config.m  # that one row of x needs
        components = position_tables * table_entries(spec.config.b) * spec.config.v
        if n <= self._bytes_up_to():
            return LOOKUP_SECONDS * (lookups * (CODES + n * LOOKUP[self.planes]) + n * components * BUILD)
        return LOOKUP_SECONDS * -(-n // BATCH) * (lookups * LOOKUP_WORDS + components * BUILD_WORDS)

    def _bytes_up_to(self) -> int:
        return _BYTES_UP_TO.get(isa.chosen().name, {}).get(self.planes, 1)


class PsumbookFast(Psumbook):
    """The same with entries of one byte, for `precision="fast"`: an error of about 1.2e-2 of the output's norm, at most
    3e-2.

    It multiplies few rows: more share tables of words, and those are `psumbook`'s.
    """

    name = "psumbook_fast"
    automatic = False
    precision = "fast"
    planes = 1

    def refuses(self, product: Product[CodebookSpec], device: Device) -> str | None:
        if product.n > self._bytes_up_to():
            return f"n={product.n}: its tables are for up to {self._bytes_up_to()} rows"
        return super().refuses(product, device)


# Relative times in units of a lookup for one row of x, measured by `codegemm compare`: of reading a code, of a lookup
# for each row (by the bytes of an entry) and for 16, of a vector component in a table's entry for one row and for 16.
CODES, LOOKUP, LOOKUP_WORDS = 0.25, {2: 0.75, 1: 0.4}, 2.4
BUILD, BUILD_WORDS = 0.2, 1.2
