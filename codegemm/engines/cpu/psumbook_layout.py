"""The order in which the Psumbook kernel reads codes and scales, and how it cuts a product; `lookup.hpp` says why.

Whoever multiplies by a weight that holds its codes in this order alone reads them here, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from codegemm.engines import cut, declarations
from codegemm.engines.cpu import compiler, kernel, library
from codegemm.formats.codebook import CodebookSpec

SOURCE = compiler.SOURCES / "psumbook.cpp"
# Rows whose codes of a position lie side by side, and of which whole groups are stored; see lookup.hpp.
BLOCK_ROWS = declarations.constant(SOURCE, "block_rows")
GROUP_ROWS = declarations.constant(SOURCE, "group_rows")
# A tile's table for one row of x in float; in bytes it fits L1 beside the codes.
TABLE_BYTES = declarations.constant(SOURCE, "max_table_bytes")
MAX_POSITIONS = declarations.constant(SOURCE, "max_positions")  # of a tile: sums of bytes hold no more
_ENTRIES = tuple(declarations.constant(SOURCE, f"{size}_entries") for size in ("few", "some", "most"))  # of a table
_TASK_LOOKUPS = 1 << 16  # some tens of microseconds
_MAX_TASKS = 32
_MIN_SLICE_ROWS = 4096  # every slice makes the tables again
_MAX_PIECES = 16  # of K: each adds a pass over the output


class Prepared(kernel.Prepared[CodebookSpec]):
    """A weight whose codes are in this order."""


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


def most_vectors(spec: CodebookSpec) -> int:
    """k-vectors of the largest tile, whose table fits L1."""
    positions = min(TABLE_BYTES // (4 * table_entries(spec.config.b)), MAX_POSITIONS)
    return max(1, positions // spec.config.m)


@lru_cache
def cut_for(spec: CodebookSpec, tile_vectors: int | None = None, slice_rows: int | None = None) -> Cut:
    """The cut of a product: tiles that respect groups, pieces and slices of enough work each.

    tile_vectors: k-vectors of a tile at most; where it is left out or more, the most that fit L1. slice_rows: of W in
    a slice.
    """
    config = spec.config
    most = min(most_vectors(spec), tile_vectors or most_vectors(spec))
    group = spec.group_vectors
    if group <= most:
        tiles = group * cut.split(spec.groups, most // group)
    else:
        inner = cut.split(group, most)[:-1]
        starts = (np.arange(spec.groups)[:, None] * group + inner).ravel()
        tiles = np.append(starts, spec.vectors)
    tasks = min(-(-spec.out_features * spec.vectors * config.m // _TASK_LOOKUPS), _MAX_TASKS)
    pieces = cut.split(len(tiles) - 1, -(-(len(tiles) - 1) // min(tasks, _MAX_PIECES)))
    rows = slice_rows or max(-(-spec.out_features // (tasks // (len(pieces) - 1))), _MIN_SLICE_ROWS)
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
    arranged, at = library.empty(padded.size, np.uint8), 0
    for first, end in pairwise(m * plan.tiles.astype(np.int64)):
        for row, end_row in plan.blocks():
            block = by_place[row:end_row, first:end].T
            arranged[at : at + block.size].reshape(block.shape)[...] = block
            at += block.size
    return arranged


def restore_codes(arranged: npt.NDArray[np.uint8], spec: CodebookSpec) -> npt.NDArray[np.uint8]:
    """The inverse of `arrange_codes`: codes [M, vectors, m]."""
    m, plan = spec.config.m, cut_for(spec)
    by_place, at = np.empty((plan.padded_rows, spec.vectors * m), np.uint8), 0
    for first, end in pairwise(m * plan.tiles.astype(np.int64)):
        for row, end_row in plan.blocks():
            size = (end - first) * (end_row - row)
            by_place[row:end_row, first:end] = arranged[at : at + size].reshape(end - first, -1).T
            at += size
    padded = np.empty_like(by_place)
    padded.reshape(-1, GROUP_ROWS, padded.shape[1])[:, place_in_group()] = by_place.reshape(
        -1, GROUP_ROWS, padded.shape[1]
    )
    rows = [padded[first_padded : first_padded + end - first] for _, first, end, first_padded, _ in plan.slices]
    codes = rows[0] if len(rows) == 1 else np.concatenate(rows)
    return codes.reshape(spec.out_features, spec.vectors, m)
