"""QuIP#'s GPU kernels (Tseng et al., 2024): rotate x, decode E8P words into tensor cores, rotate the result.

Facts of the original kept here: the grid of one thread block a multiprocessor, the split of K over its warps, the
arithmetic of a code word. Better than there: sums are added in a fixed order and not by atomics; up to 8 rows of x fill
the columns of the tensor cores' operand, which the original gives to a single row; and more rows go eight at a time
until rebuilding the matrix is faster, which the original does from two rows on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from codegemm.arrays import array_module
from codegemm.engines.cuda import gemm, rotation
from codegemm.engines.cuda.dequant_dense import SLICE_BYTES
from codegemm.engines.cuda.gpu import LANES, Gpu
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.model import START, Work, balance
from codegemm.engines.cuda.steps import (
    Array,
    Gemm,
    Launch,
    Number,
    Place,
    Scratch,
    Step,
    Structure,
    instance,
    structure,
)
from codegemm.engines.cut import split
from codegemm.formats import e8p_codebook
from codegemm.formats.e8p import E8PSpec, E8PWeight
from codegemm.kernel import Product

SOURCE = "quip.cu"
COLUMNS = 8  # of an operand: rows of x whose products read the codes once
# Rows of x beyond which What is rebuilt: writing and reading it takes as long as so many rows' codes, eight at a time.
MATVEC_ROWS = 48
PAIR_ROWS = 4  # of x at most, where a row is two columns
TILE_ROWS, STEP = 16, 64  # of W, columns of W
MAX_WARPS = 32
_TABLE_BYTES = 4 * 256 * LANES
_TOGETHER = {2: 4, 3: 2, 4: 2}  # tiles; must match `together` in quip.cu
_INSTRUCTIONS = {2: 103.0, 3: 173.0, 4: 200.0}  # for 16 x 64 weights, by bits, counted in the compiled loops
_PASS_LATENCY = 300.0  # clocks that nothing hides: the sums of a few tiles
# `Quip` in quip.cu.
ARGUMENTS = np.dtype(
    [(name, np.uint64) for name in ("codes", "residual", "tables")]
    + [(name, np.int32) for name in ("first_tile", "tiles", "steps", "batch", "pairs")]
    + [("residual_factor", np.float32)]
    + [(name, np.uint64) for name in ("rotated", "sums", "dense")],
    align=True,
)


class Quip(CudaKernel[E8PSpec, E8PWeight]):
    """E8P weights of 2, 3 and 4 bit and every Hadamard matrix; many rows of x by slices of What and cuBLAS.

    Rotated x is fp16 times a power of two, for up to 4 rows of x in two numbers each: their error is that of float32,
    of more rows about 2e-4 of the result's norm. Beyond 48 rows the weights of 3 and 4 bit are rounded to fp16 too.
    """

    name = "quip"
    weights = E8PWeight
    automatic = True

    def __init__(self, slice_bytes: int = SLICE_BYTES) -> None:
        self.slice_bytes = slice_bytes

    def arrange(self, weight: E8PWeight) -> Prepared:
        vectors = {"in": rotation.factors(weight.SU), "out": rotation.factors(weight.SV)}
        # Both kinds of words are decoded twice as large as they are.
        numbers = {"residual_factor": 0.5 / weight.resid_scale}
        return Prepared(weight.spec, weight.device, arrange_codes(weight) | vectors, numbers)

    def batches(self, n: int) -> Iterable[int]:
        few = range(1, min(n, MATVEC_ROWS) + 1)
        return few if n <= MATVEC_ROWS else (*few, n)

    def steps(self, product: Product[E8PSpec], gpu: Gpu, scratch: Scratch) -> list[Step]:
        n, (m, k) = product.n, product.spec.shape
        scales = scratch.take("scales", (n,), np.float32)
        rotated = scratch.take("rotated", (n, 2 if n <= PAIR_ROWS else 1, k), np.float16)
        sums = scratch.take("sums", (n, m), np.float32)
        rotate_in, rotate_out = (rotation.launch(side, product, scales, rotated, sums, gpu) for side in ("in", "out"))
        if n <= MATVEC_ROWS:
            return [rotate_in, _matvec(product, rotated, sums, gpu), rotate_out]
        tiles = slices(product.spec, self.slice_bytes)
        most = TILE_ROWS * max(end - first for first, end in tiles)
        place = scratch.take("dense", (most, k), np.float16)
        steps: list[Step] = []
        for first, end in tiles:
            dense = replace(place, shape=(TILE_ROWS * (end - first), k))
            work = gemm.work(dense.shape, n, dense.dtype)
            x = replace(rotated, shape=(n, k))
            steps += [_dequantize(product, first, end, dense, gpu), Gemm(dense, work, TILE_ROWS * first, x, sums)]
        return [rotate_in, *steps, rotate_out]


def _matvec(product: Product[E8PSpec], rotated: Place, sums: Place, gpu: Gpu) -> Launch:
    spec, n, (m, k) = product.spec, product.n, product.spec.shape
    turns, grid, count = -(-n // COLUMNS), blocks(spec, gpu), warps(spec, n, gpu)
    passes = -(-m // TILE_ROWS // grid // _TOGETHER[spec.bits])
    columns = n * (2 if n <= PAIR_ROWS else 1)
    x_bytes = 2 * columns * k * -(-m // TILE_ROWS // _TOGETHER[spec.bits])
    codes, steps, gathers = _counts(spec)
    again = (turns - 1) * codes if codes <= gpu.l2_bytes else 0
    return Launch(
        SOURCE,
        instance("quip", spec.bits),
        grid=(grid, turns),
        threads=LANES * count,
        shared_bytes=shared_bytes(spec, n, count),
        arguments=(_arguments(product, 0, m // TILE_ROWS, rotated=rotated, sums=sums),),
        work=Work(
            bytes_read=turns * codes,
            cached_bytes=again,
            l2_bytes=x_bytes + again,
            wavefronts=turns * (gathers + codes / 128) + x_bytes / 128,
            instructions=turns * steps * _INSTRUCTIONS[spec.bits],
            mma=turns * gathers,
            balance=balance(m // TILE_ROWS, gpu.multiprocessors),
            latency=START + passes * _PASS_LATENCY,
        ),
    )


def _dequantize(product: Product[E8PSpec], first: int, end: int, dense: Place, gpu: Gpu) -> Launch:
    """Rebuilds tiles of What."""
    spec = product.spec
    share = (end - first) * TILE_ROWS / spec.out_features
    codes, steps, gathers = (share * count for count in _counts(spec))
    return Launch(
        SOURCE,
        instance("dequantize_e8p", spec.bits),
        grid=(min(gpu.multiprocessors, -(-(end - first) * spec.in_features // (STEP * MAX_WARPS))),),
        threads=LANES * MAX_WARPS,
        shared_bytes=_table_bytes(spec),
        arguments=(_arguments(product, first, end - first, dense=dense),),
        work=Work(
            bytes_read=codes,
            bytes_written=dense.nbytes,
            wavefronts=gathers + (codes + dense.nbytes) / 128,
            instructions=steps * (_INSTRUCTIONS[spec.bits] + (0 if spec.bits == 2 else 60)),
        ),
    )


def _arguments(product: Product[E8PSpec], first_tile: int, count: int, **places: Place) -> Structure:
    """A launch's structure for tiles of 16 rows, null for places that it doesn't use."""
    spec, n = product.spec, product.n
    return structure(
        ARGUMENTS,
        first_tile=first_tile,
        tiles=count,
        steps=spec.in_features // STEP,
        batch=n,
        pairs=n <= PAIR_ROWS,
        residual_factor=Number("residual_factor"),
        residual=Array("residual") if spec.bits > 2 else 0,
        **{"rotated": 0, "sums": 0, "dense": 0} | places,
    )


def _counts(spec: E8PSpec) -> tuple[int, int, int]:
    """Bytes of the codes, steps of 16 x 64 weights, wavefronts of their gathers."""
    m, k = spec.shape
    steps = m // TILE_ROWS * k // STEP
    return spec.bits * m * k // 8, steps, 4 * steps * (1 if spec.bits == 2 else 2)


def slices(spec: E8PSpec, most_bytes: int) -> list[tuple[int, int]]:
    """(first, end) of near-equal slices of tiles of 16 rows, of at most so many bytes in float16."""
    most = max(1, most_bytes // (2 * TILE_ROWS * spec.in_features))
    return list(itertools.pairwise(split(spec.out_features // TILE_ROWS, most).tolist()))


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
