"""QuIP#'s GPU kernels (Tseng et al., 2024): rotate x, decode E8P words into tensor cores, rotate the result.

Facts of the original kept here: the grid of one thread block a multiprocessor, the split of K over its warps, the
arithmetic of a code word. Better than there: sums are added in a fixed order and not by atomics; up to 8 rows of x fill
the columns of the tensor cores' operand, which the original gives to a single row; and more rows go eight at a time
until rebuilding the matrix is faster, which the original does from two rows on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from codegemm.arrays import array_module
from codegemm.baselines.dense_cuda import SLICE_BYTES, Slice, gemm_work
from codegemm.engines.cuda import device as gpus
from codegemm.engines.cuda import gemm, rotation
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.launch import CudaKernel, Launch, Launches, Prepared, Run, launch
from codegemm.engines.cuda.model import Work, balance
from codegemm.engines.cuda.rows import COUNTER_BYTES
from codegemm.formats import e8p_codebook
from codegemm.formats.e8p import E8PSpec, E8PWeight
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost

SOURCE = "quip.cu"
COLUMNS = 8  # of an operand: rows of x whose products read the codes once
# Rows of x beyond which What is rebuilt: writing and reading it takes as long as so many rows' codes, eight at a time.
MATVEC_ROWS = 48
PAIR_ROWS = 4  # of x at most, where a row is two columns
TILE_ROWS, STEP = 16, 64  # of W, columns of W
LANES = 32
MAX_WARPS = 32
_TABLE_BYTES = 4 * 256 * LANES
_TOGETHER = {2: 4, 3: 2, 4: 2}  # tiles; must match `together` in quip.cu
_INSTRUCTIONS = {2: 103.0, 3: 173.0, 4: 200.0}  # for 16 x 64 weights, by bits, counted in the compiled loops
_START, _PASS_LATENCY = 1500.0, 300.0  # clocks that nothing hides: a block's start, the sums of a few tiles
# `Quip` in quip.cu.
ARGUMENTS = np.dtype(
    [(name, np.uint64) for name in ("codes", "residual", "tables")]
    + [(name, np.int32) for name in ("first_tile", "tiles", "steps", "batch", "pairs")]
    + [("residual_factor", np.float32)]
    + [(name, np.uint64) for name in ("rotated", "sums", "dense")],
    align=True,
)


@dataclass(frozen=True)
class Places:
    """Where in the workspace: what the rotations use, `dense`, slices of What float16 [rows, K], and its end."""

    rotation: rotation.Places
    dense: int
    end: int


@dataclass(frozen=True)
class _Sliced:
    """The product of rotated x and What, slice by slice."""

    slices: tuple[Slice, ...]
    shape: tuple[int, int, int]  # n, M, K
    places: Places

    def __call__(self, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        n, m, k = self.shape
        rotated = _view(workspace, self.places.rotation.rotated, (n, k), np.float16)
        sums = _view(workspace, self.places.rotation.sums, (n, m), np.float32)
        for part in self.slices:
            part.dequantize(x, out, workspace, stream)
            dense = _view(workspace, self.places.dense, (part.rows, k), np.float16)
            gemm.multiply(rotated, dense, sums, part.first, stream)


class QuipCuda(CudaKernel):
    """E8P weights of 2, 3 and 4 bit and every Hadamard matrix; many rows of x by slices of What and cuBLAS.

    Rotated x is fp16 times a power of two, for up to 4 rows of x in two numbers each: their error is that of float32,
    of more rows about 2e-4 of the result's norm. Beyond 48 rows the weights of 3 and 4 bit are rounded to fp16 too.
    """

    name = "quip"
    automatic = True

    def refuses(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> str | None:
        return None if isinstance(spec, E8PSpec) else "it multiplies E8PWeights"

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        return super().supports(spec, n, dtype, device) or (gemm.unavailable() if n > MATVEC_ROWS else None)

    def arrange(self, weight: Weight) -> Prepared:
        assert isinstance(weight, E8PWeight)
        vectors = {"in": rotation.factors(weight.SU), "out": rotation.factors(weight.SV)}
        arrays = arrange_codes(weight) | vectors
        # Both kinds of words are decoded twice as large as they are.
        return Prepared(weight.spec, weight.device, arrays, {"residual_factor": 0.5 / weight.resid_scale})

    def batches(self, n: int) -> Iterable[int]:
        few = range(1, min(n, MATVEC_ROWS) + 1)
        return few if n <= MATVEC_ROWS else (*few, n)

    def decide(self, prepared: Prepared, n: int, dtype: np.dtype, out_dtype: np.dtype) -> Run:
        spec, arrays = prepared.spec, prepared.arrays
        assert isinstance(spec, E8PSpec)
        gpu, where = gpus.gpu(prepared.device), places(spec, n)
        rotations = [
            rotation.decide(prepared.device, side, arrays, where.rotation, n, dtype, out_dtype)
            for side in ("in", "out")
        ]
        product = self._matvec(prepared, n, gpu) if n <= MATVEC_ROWS else self._sliced(prepared, n, gpu)
        return Launches((rotations[0], product, rotations[1]))

    def _matvec(self, prepared: Prepared, n: int, gpu: Gpu) -> Launch:
        spec = prepared.spec
        assert isinstance(spec, E8PSpec)
        filled = _arguments(prepared, n, 0, spec.out_features // TILE_ROWS)
        chosen = warps(spec, n, gpu)
        return launch(
            prepared.device,
            SOURCE,
            f"quip<{spec.bits}>",
            (blocks(spec, gpu), -(-n // COLUMNS)),
            LANES * chosen,
            shared_bytes(spec, n, chosen),
            (filled,),
        )

    def _sliced(self, prepared: Prepared, n: int, gpu: Gpu) -> _Sliced:
        spec = prepared.spec
        assert isinstance(spec, E8PSpec)
        gemm.load()
        made = []
        for first, end in slices(spec):
            filled = _arguments(prepared, n, first, end - first)
            grid = min(gpu.multiprocessors, -(-(end - first) * spec.in_features // (STEP * MAX_WARPS)))
            dequantize = launch(
                prepared.device,
                SOURCE,
                f"dequantize_e8p<{spec.bits}>",
                (grid,),
                LANES * MAX_WARPS,
                _table_bytes(spec),
                (filled,),
            )
            made.append(Slice(first * TILE_ROWS, (end - first) * TILE_ROWS, dequantize))
        return _Sliced(tuple(made), (n, *spec.shape), places(spec, n))

    def instances(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> Iterable[tuple[str, str]]:
        assert isinstance(spec, E8PSpec)
        name = "quip" if n <= MATVEC_ROWS else "dequantize_e8p"
        rotations = [(rotation.SOURCE, rotation.instance(side, dtype)) for side in ("in", "out")]
        return [*rotations, (SOURCE, f"{name}<{spec.bits}>")]

    def workspace(self, spec: Spec, n: int, device: str) -> int:
        assert isinstance(spec, E8PSpec)
        return max(places(spec, rows).end for rows in {n, min(n, PAIR_ROWS), min(n, MATVEC_ROWS)})

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        assert isinstance(spec, E8PSpec)
        (m, k), tables = spec.shape, 1 if spec.bits == 2 else 2
        dense = 0 if n <= MATVEC_ROWS else 2 * m * k
        turns = -(-n // COLUMNS) if n <= MATVEC_ROWS else 1
        cuts = {length: rotation.cut_for(length, n) for length in spec.shape}
        mixed = sum(length * (cuts[length].order + cuts[length].segment.bit_length() - 1) for length in spec.shape)
        return Cost(
            bytes_read=turns * spec.bits * m * k // 8 + 4 * (m + k) + n * k * dtype.itemsize + dense,
            bytes_written=n * m * dtype.itemsize + dense,
            lookups=turns * m * k // 8 * tables,
            multiply_adds=n * (m * k * (tables if n <= MATVEC_ROWS else 1) + mixed),
            launches=3 if n <= MATVEC_ROWS else 2 + 2 * len(slices(spec)),
        )

    def work(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> tuple[Work, ...]:
        assert isinstance(spec, E8PSpec)
        m, k = spec.shape
        before = rotation.work(k, n, dtype.itemsize, dtype.itemsize + 4, gpu)
        after = rotation.work(m, n, dtype.itemsize, 4, gpu)
        codes = spec.bits * m * k // 8
        steps = m // TILE_ROWS * k // STEP
        gathers = 4 * steps * (1 if spec.bits == 2 else 2)
        if n > MATVEC_ROWS:
            decode = Work(
                dram_bytes=codes + 2 * m * k,
                wavefronts=gathers + (codes + 2 * m * k) / 128,
                instructions=steps * (_INSTRUCTIONS[spec.bits] + (0 if spec.bits == 2 else 60)),
            )
            return before, decode, gemm_work(m, k, n, np.dtype(np.float16)), after
        turns, grid = -(-n // COLUMNS), blocks(spec, gpu)
        passes = -(-m // TILE_ROWS // grid // _TOGETHER[spec.bits])
        columns = n * (2 if n <= PAIR_ROWS else 1)
        x_bytes = 2 * columns * k * -(-m // TILE_ROWS // _TOGETHER[spec.bits])
        again = (turns - 1) * codes if codes <= gpu.l2_bytes else 0
        product = Work(
            dram_bytes=turns * codes - again,
            l2_bytes=x_bytes + again,
            wavefronts=turns * (gathers + codes / 128) + x_bytes / 128,
            instructions=turns * steps * _INSTRUCTIONS[spec.bits],
            mma=turns * gathers,
            balance=balance(m // TILE_ROWS, gpu.multiprocessors),
            latency=_START + passes * _PASS_LATENCY,
        )
        return before, product, after


def places(spec: E8PSpec, n: int) -> Places:
    """Where n rows have what in the workspace, behind its counters."""
    m, k = spec.shape
    columns = 2 if n <= PAIR_ROWS else 1
    rotated = COUNTER_BYTES + _round(4 * n)
    sums = rotated + 2 * n * columns * k
    dense = sums + 4 * n * m
    rows = TILE_ROWS * max(end - first for first, end in slices(spec)) if n > MATVEC_ROWS else 0
    return Places(rotation.Places(columns, COUNTER_BYTES, rotated, sums), dense, dense + 2 * rows * k)


def slices(spec: E8PSpec) -> list[tuple[int, int]]:
    """(first, end) of near-equal slices of tiles of 16 rows, of at most 256 MiB in float16."""
    tiles = spec.out_features // TILE_ROWS
    count = -(-tiles // max(1, SLICE_BYTES // (2 * TILE_ROWS * spec.in_features)))
    bounds = [tiles * i // count for i in range(count + 1)]
    return list(itertools.pairwise(bounds))


def blocks(spec: E8PSpec, gpu: Gpu) -> int:
    """Thread blocks: one a multiprocessor, each with a tile at least."""
    return min(gpu.multiprocessors, spec.out_features // TILE_ROWS)


def warps(spec: E8PSpec, n: int, gpu: Gpu) -> int:
    """Of a block: one a step of K, as many as there are and have room for their partial sums."""
    most = min(MAX_WARPS, spec.in_features // STEP)
    return max(count for count in range(1, most + 1) if shared_bytes(spec, n, count) <= gpu.shared_per_block)


def shared_bytes(spec: E8PSpec, n: int, count: int) -> int:
    """Tables and, twice, the partial sums of `count` warps."""
    width = n if n <= PAIR_ROWS else COLUMNS
    return _table_bytes(spec) + 2 * 4 * count * _TOGETHER[spec.bits] * TILE_ROWS * width


def _table_bytes(spec: E8PSpec) -> int:
    return (2 if spec.bits == 3 else 1) * _TABLE_BYTES


def _round(size: int) -> int:
    return -(-size // 256) * 256


def _view(workspace: Any, start: int, shape: tuple[int, int], dtype: Any) -> Any:
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    return workspace[start : start + size].view(dtype).reshape(shape)


def tables(bits: int) -> np.ndarray:
    """uint32 words of eight nibbles 2v + 8: the base vectors [256] and, for 3 bit, the ball [256] behind them."""
    base = e8p_codebook.packed_abs_words()
    if bits != 3:
        return base
    order = np.argsort(e8p_codebook.SIGN_BIT)  # coordinate of each nibble
    nibbles = (2 * e8p_codebook.residual_grid()[:, order] + 8).astype(np.uint32)
    ball = (nibbles << np.arange(0, 32, 4, dtype=np.uint32)).sum(1, dtype=np.uint32)
    return np.concatenate([base, ball])


def arrange_codes(weight: E8PWeight) -> dict[str, Any]:
    """Codes int64 [M/16, K/64, 32] as the format has them, the residual's by themselves, and the tables.

    The ball's indices, eight of a row together in the format, take the order of the codes: uint32 [M/16, K/64, 32].
    """
    xp, (m, k) = array_module(weight.qidxs), weight.shape
    words = k // 32
    arrays = {"tables": xp.asarray(tables(weight.bits))}
    if weight.bits == 2:
        return arrays | {"codes": weight.qidxs}
    rest = xp.ascontiguousarray(weight.qidxs[:, words:])
    if weight.bits == 3:
        # row 16 I + 2 g + a, column 8 J + 2 t + b -> byte a + 2 b of word [I, J, g, t]
        indices = rest.view(np.uint8).reshape(m // 16, 8, 2, k // 64, 4, 2)
        rest = xp.ascontiguousarray(indices.transpose(0, 3, 1, 4, 5, 2)).reshape(-1, 4).view(np.uint32)
    return arrays | {"codes": xp.ascontiguousarray(weight.qidxs[:, :words]), "residual": rest}


def _arguments(prepared: Prepared, n: int, first_tile: int, count: int) -> np.ndarray:
    """A launch's structure for tiles of 16 rows."""
    spec, arrays = prepared.spec, prepared.arrays
    assert isinstance(spec, E8PSpec)
    where = places(spec, n)
    return np.array(
        (
            *(gpus.address(arrays[name]) if name in arrays else 0 for name in ("codes", "residual", "tables")),
            first_tile, count, spec.in_features // STEP, n, n <= PAIR_ROWS, prepared.numbers["residual_factor"],
            where.rotation.rotated, where.rotation.sums, where.dense,
        ),
        ARGUMENTS,
    )  # fmt: skip
