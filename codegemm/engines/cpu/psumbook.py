"""The Psumbook kernel (CodeGEMM): tables of a K tile in L1, codes streamed once, scales per group."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int32, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.engines.cpu import compiler, cut, library
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel

_SOURCE = compiler.SOURCES / "psumbook.cpp"
MAX_N = 16
MAX_B = 8
LANES = 16  # rows that look up together; must match `lanes` in floats.hpp
# A tile's table for one row of x fits L1 beside the codes; must match `max_table_bytes` in psumbook.cpp.
TABLE_BYTES = 32 << 10
_MIN_STRIDE = 16  # entries of a table: whole vector registers
_MAX_POSITIONS = 256
_SLICE_ROWS = 2048  # tables are built once a slice: long slices share them
_TASK_LOOKUPS = 1 << 16  # shorter tasks cost more to hand out than to run
_MAX_PIECES = 16  # of K: each adds a pass over the output


class PsumbookArgs(ctypes.Structure):
    """Must match `PsumbookArgs` in psumbook.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "out", "workspace", "codes", "codebooks", "scales")),
        *((name, c_void_p) for name in ("tiles", "pieces", "slices")),
        *((name, c_int32) for name in ("piece_count", "slice_count", "x_dtype", "out_dtype", "n", "rows")),
        *((name, c_int32) for name in ("padded_rows", "in_features", "v", "m", "stride", "group_vectors")),
    ]


@dataclass(frozen=True)
class Cut:
    """Bounds of the tiles in k-vectors, of the pieces in tiles, and the slices of rows.

    A slice is (part, first row, end row, first padded row, end padded row): rows are padded to whole blocks of LANES.
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


@dataclass
class Prepared:
    """The weight as the kernel reads it: codes [tile][block of rows][position][lane], codebooks
    [parts, m, v, stride] in float32, scales [groups, padded rows], and the cut."""

    spec: CodebookSpec
    arguments: library.Arguments


def table_stride(b: int) -> int:
    """Entries between the tables of two positions."""
    return max(1 << b, _MIN_STRIDE)


@lru_cache
def cut_for(spec: CodebookSpec) -> Cut:
    """The cut of a product: tiles that fit L1 and respect groups, pieces and slices of enough work each."""
    config = spec.config
    positions = min(TABLE_BYTES // (4 * table_stride(config.b)), _MAX_POSITIONS)
    most = max(1, positions // config.m)
    group = spec.vectors // spec.groups
    if group <= most:
        tiles = group * cut.split(spec.groups, most // group)
    else:
        inner = cut.split(group, most)[:-1]
        starts = (np.arange(spec.groups)[:, None] * group + inner).ravel()
        tiles = np.append(starts, spec.vectors)
    slices = _padded(cut.row_slices(spec.part_rows, _SLICE_ROWS, LANES))
    lookups = spec.out_features * spec.vectors * config.m
    wanted = -(-lookups // _TASK_LOOKUPS // len(slices))
    pieces = min(max(wanted, 1), _MAX_PIECES, len(tiles) - 1)
    return Cut(tiles.astype(np.int32), cut.split(len(tiles) - 1, -(-(len(tiles) - 1) // pieces)), slices)


def _padded(slices: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The slices with the bounds of their padded rows."""
    blocks = -(-(slices[:, 2] - slices[:, 1]) // LANES)
    ends = (LANES * np.cumsum(blocks)).astype(np.int32)
    return np.column_stack([slices, ends - LANES * blocks, ends]).astype(np.int32)


def batch_width(n: int) -> int:
    """Rows of x that lie side by side in a table: n rounded up to a power of two."""
    return 1 << (n - 1).bit_length()


class Psumbook(Kernel):
    """Builds the table of all centroids' inner products with x, tile by tile, and gathers by the codes."""

    name = "psumbook"
    engine = "cpu"
    automatic = True

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        if not isinstance(spec, CodebookSpec):
            return "it multiplies CodebookWeights"
        if spec.config.b > MAX_B:
            return f"b={spec.config.b}: its tables hold 2^b entries a position, b up to {MAX_B}"
        if n > MAX_N:
            return f"n={n}: its tables hold up to {MAX_N} rows of x"
        return None

    def prepare(self, weight: Weight, device: str) -> Prepared:
        assert isinstance(weight, CodebookWeight)
        spec = weight.spec
        plan = cut_for(spec)
        blocks = plan.pad(weight.codes).reshape(-1, LANES, spec.vectors, spec.config.m)
        codes = np.concatenate(
            [
                blocks[:, :, first:end].reshape(len(blocks), LANES, -1).transpose(0, 2, 1).ravel()
                for first, end in zip(plan.tiles, plan.tiles[1:])
            ]
        )
        books = weight.part_codebooks.astype(np.float32).swapaxes(-1, -2)
        padded = np.zeros((*books.shape[:-1], table_stride(spec.config.b)), np.float32)
        padded[..., : books.shape[-1]] = books
        arguments = library.Arguments(
            PsumbookArgs,
            {
                "codes": codes,
                "codebooks": padded,
                "scales": np.ascontiguousarray(plan.pad(weight.scales).T),
                "tiles": plan.tiles,
                "pieces": plan.pieces,
                "slices": plan.slices,
            },
            piece_count=len(plan.pieces) - 1,
            slice_count=len(plan.slices),
            rows=spec.out_features,
            padded_rows=plan.padded_rows,
            in_features=spec.in_features,
            v=spec.config.v,
            m=spec.config.m,
            stride=padded.shape[-1],
            group_vectors=spec.vectors // spec.groups,
        )
        return Prepared(spec, arguments)

    def workspace(self, spec: Spec, n: int, device: str) -> int:
        assert isinstance(spec, CodebookSpec)
        plan = cut_for(spec)
        floats = (spec.in_features + (len(plan.pieces) - 1) * plan.padded_rows) * batch_width(n)
        return 4 * (floats + len(plan.slices))

    def run(self, prepared: Prepared, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        multiply = library.function(_SOURCE, "psumbook", PsumbookArgs, c_int)
        if multiply is None:
            return _run_numpy(prepared, x, out)
        prepared.arguments.call(multiply, x, out, workspace, batch_width(len(x)))

    def builds(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> tuple[library.Load, ...]:
        return library.loads(_SOURCE)

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        assert isinstance(spec, CodebookSpec)
        config, (m_rows, k) = spec.config, spec.shape
        rows = cut_for(spec).padded_rows
        codes = rows * spec.vectors * config.m
        books = 4 * len(spec.part_rows) * config.m * config.v * table_stride(config.b)
        return Cost(
            bytes_read=codes + books + 2 * rows * spec.groups + n * k * dtype.itemsize,
            bytes_written=n * m_rows * dtype.itemsize,
            lookups=m_rows * spec.vectors * config.m,
            multiply_adds=n * (_table_entries(spec) * config.v + m_rows * spec.groups),
        )

    def estimate(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> float:
        assert isinstance(spec, CodebookSpec)
        width = batch_width(n)
        return self.cost(spec, n, dtype).lookups * LOOKUP[width] + _table_entries(spec) * spec.config.v * BUILD[width]


def _table_entries(spec: CodebookSpec) -> int:
    """Entries of all tables that one row of x needs."""
    return len(cut_for(spec).slices) * spec.vectors * spec.config.m * table_stride(spec.config.b)


# Relative times by batch width, measured by `codegemm compare`: of a lookup, of a vector component in a table's entry.
LOOKUP = {1: 1.0, 2: 3.0, 4: 3.3, 8: 4.0, 16: 5.0}
BUILD = {1: 0.2, 2: 0.9, 4: 0.9, 8: 0.9, 16: 1.1}


def _run_numpy(prepared: Prepared, x: Any, out: Any) -> None:
    """The same algorithm where there is no compiler: one table a tile, gathered for all rows of a slice at once."""
    spec, config, arrays = prepared.spec, prepared.spec.config, prepared.arguments.arrays
    x32 = x.astype(np.float32).reshape(len(x), spec.vectors, config.v)
    group = spec.vectors // spec.groups
    padded_rows = arrays["scales"].shape[1]
    sums, offset = np.zeros((len(x), padded_rows), np.float32), 0
    with np.errstate(over="ignore", invalid="ignore"):
        for first, end in pairwise(arrays["tiles"]):
            width = int(end - first) * config.m
            blocks = arrays["codes"][offset : offset + width * padded_rows].reshape(-1, width, LANES)
            codes = blocks.transpose(0, 2, 1).reshape(padded_rows, width)
            offset += codes.size
            for part, _, _, begin, stop in arrays["slices"]:
                # [n, position, centroid]
                table = np.einsum("njt,mti->njmi", x32[:, first:end], arrays["codebooks"][part])
                table = table.reshape(len(x), width, -1)
                found = table[:, np.arange(width), codes[begin:stop]]
                step = min(end - first, group) * config.m
                by_group = found.reshape(len(x), stop - begin, -1, step).sum(-1)
                scales = arrays["scales"][first // group : first // group + by_group.shape[-1], begin:stop]
                sums[:, begin:stop] += np.einsum("nrg,gr->nr", by_group, scales.astype(np.float32))
        for _, row, end_row, begin, _ in arrays["slices"]:
            out[:, row:end_row] = sums[:, begin : begin + end_row - row]
