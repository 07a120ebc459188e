"""The Psumbook kernel (CodeGEMM): tables of a K tile in L1, codes streamed once, scales per group."""

from __future__ import annotations

import ctypes
import itertools
from ctypes import c_int, c_int32, c_void_p
from dataclasses import dataclass
from functools import lru_cache
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
        *((name, c_int32) for name in ("in_features", "v", "m", "stride", "group_vectors")),
    ]


@dataclass(frozen=True)
class Cut:
    """Bounds of the tiles in k-vectors, of the pieces in tiles, and the slices (part, first row, end row)."""

    tiles: npt.NDArray[np.int32]
    pieces: npt.NDArray[np.int32]
    slices: npt.NDArray[np.int32]


@dataclass
class Prepared:
    """The weight as the kernel reads it: codes [tile][row][position], codebooks [parts, m, v, stride] in float32,
    scales [groups, rows], and the cut."""

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
    slices = cut.row_slices(spec.part_rows, _SLICE_ROWS)
    lookups = spec.out_features * spec.vectors * config.m
    wanted = -(-lookups // _TASK_LOOKUPS // len(slices))
    pieces = min(max(wanted, 1), _MAX_PIECES, len(tiles) - 1)
    return Cut(tiles.astype(np.int32), cut.split(len(tiles) - 1, -(-(len(tiles) - 1) // pieces)), slices)


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
        codes = np.concatenate([weight.codes[:, first:end].ravel() for first, end in zip(plan.tiles, plan.tiles[1:])])
        books = weight.part_codebooks.astype(np.float32).swapaxes(-1, -2)
        padded = np.zeros((*books.shape[:-1], table_stride(spec.config.b)), np.float32)
        padded[..., : books.shape[-1]] = books
        arguments = library.Arguments(
            PsumbookArgs,
            {
                "codes": codes,
                "codebooks": padded,
                "scales": np.ascontiguousarray(weight.scales.T),
                "tiles": plan.tiles,
                "pieces": plan.pieces,
                "slices": plan.slices,
            },
            piece_count=len(plan.pieces) - 1,
            slice_count=len(plan.slices),
            rows=spec.out_features,
            in_features=spec.in_features,
            v=spec.config.v,
            m=spec.config.m,
            stride=padded.shape[-1],
            group_vectors=spec.vectors // spec.groups,
        )
        return Prepared(spec, arguments)

    def workspace(self, spec: Spec, n: int) -> int:
        assert isinstance(spec, CodebookSpec)
        plan = cut_for(spec)
        floats = (spec.in_features + (len(plan.pieces) - 1) * spec.out_features) * batch_width(n)
        return 4 * (floats + len(plan.slices))

    def run(self, prepared: Prepared, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        multiply = library.function(_SOURCE, "psumbook", PsumbookArgs, c_int)
        if multiply is None:
            return _run_numpy(prepared, x, out)
        prepared.arguments.call(multiply, x, out, workspace, batch_width(len(x)))

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        assert isinstance(spec, CodebookSpec)
        config, (m_rows, k) = spec.config, spec.shape
        plan = cut_for(spec)
        stored = m_rows * spec.vectors * config.m + 4 * len(spec.part_rows) * config.m * config.v * table_stride(
            config.b
        )
        tables = len(plan.slices) * config.m * table_stride(config.b) * k
        return Cost(
            bytes_read=stored + 2 * m_rows * spec.groups + n * k * dtype.itemsize,
            bytes_written=n * m_rows * dtype.itemsize,
            lookups=m_rows * spec.vectors * config.m,
            multiply_adds=n * (tables + m_rows * spec.groups),
        )

    def estimate(self, spec: Spec, n: int, dtype: np.dtype) -> float:
        cost = self.cost(spec, n, dtype)
        return cost.lookups * LOOKUP[batch_width(n)] + cost.multiply_adds * MULTIPLY_ADD


# Relative times, measured by `codegemm compare --threads 1`: a lookup by batch width, a multiply-add in a table.
LOOKUP = {1: 1.0, 2: 1.2, 4: 1.7, 8: 2.0, 16: 2.7}
MULTIPLY_ADD = 0.06


def _run_numpy(prepared: Prepared, x: Any, out: Any) -> None:
    """The same algorithm where there is no compiler: one table a tile, gathered for all rows at once."""
    spec, config = prepared.spec, prepared.spec.config
    x32 = x.astype(np.float32).reshape(len(x), spec.vectors, config.v)
    group = spec.vectors // spec.groups
    sums = np.zeros((len(x), spec.out_features), np.float32)
    arrays, offset = prepared.arguments.arrays, 0
    tiles = arrays["tiles"]
    parts = np.cumsum([0, *spec.part_rows])
    with np.errstate(over="ignore", invalid="ignore"):
        for first, end in itertools.pairwise(tiles):
            width = (end - first) * config.m
            codes = arrays["codes"][offset : offset + width * spec.out_features].reshape(-1, width)
            offset += codes.size
            for part, (r0, r1) in enumerate(itertools.pairwise(parts)):
                # [n, position, centroid]
                table = np.einsum("njt,mti->njmi", x32[:, first:end], arrays["codebooks"][part])
                table = table.reshape(len(x), width, -1)
                found = table[:, np.arange(width), codes[r0:r1]]
                step = min(end - first, group) * config.m
                by_group = found.reshape(len(x), r1 - r0, -1, step).sum(-1)
                scales = arrays["scales"][first // group : first // group + by_group.shape[-1], r0:r1]
                sums[:, r0:r1] += np.einsum("nrg,gr->nr", by_group, scales.astype(np.float32))
        out[...] = sums
