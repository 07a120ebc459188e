"""QuIP#'s GPU kernels (Tseng et al., 2024): rotate x, decode E8P words into tensor cores, rotate the result.

Facts of the original kept here: the grid of one thread block a multiprocessor, the split of K over its warps, a table
of base vectors in shared memory and tensor cores. Better than there: sums are added in a fixed order and not by
atomics; codes become integers, their signs looked up as well, in less than half the instructions of fp16; up to 8 rows
of x are multiplied together, where the original has a single row; and more rows go eight at a time until rebuilding the
matrix is faster, which the original does from two rows on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from codegemm import kernels_cu
from codegemm.arrays import array_module
from codegemm.baselines.cuda.incoherent import IncoherentKernel
from codegemm.engines import limits
from codegemm.engines.cuda.gpu import LANES, Gpu
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.model import Work, balance
from codegemm.engines.cuda.steps import (
    Array,
    Launch,
    Number,
    Place,
    Structure,
    instance,
    structure,
)
from codegemm.formats import e8p_codebook
from codegemm.formats.e8p import E8PSpec, E8PWeight
from codegemm.kernel import Product

SOURCE = "quip.cu"
ROWS = kernels_cu.constant(SOURCE, "most_rows")  # of x, whose products read the codes once
EXACT_ROWS = 4  # of x at most, whose numbers have a digit more
# Rows of x beyond which What is rebuilt: writing and reading it takes as long as so many rows' codes, eight at a time.
MATVEC_ROWS = 48
TILE_ROWS, STEP = kernels_cu.constant(SOURCE, "tile_rows"), kernels_cu.constant(SOURCE, "step_weights")
MAX_WARPS = kernels_cu.constant(SOURCE, "most_threads") // LANES
_TABLE_BYTES, _BALL_BYTES = kernels_cu.constant(SOURCE, "tables_bytes"), kernels_cu.constant(SOURCE, "ball_bytes")
_TOGETHER = {2: 4, 3: 2, 4: 2}  # tiles
_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)  # of a coordinate in a table's word
# For 16 x 64 weights, by bits and groups of rows of x, counted in the compiled loops.
_INSTRUCTIONS = {
    (2, 1): 37.0, (2, 2): 43.0, (2, 3): 45.0,
    (3, 1): 70.0, (3, 2): 78.0, (3, 3): 94.0,
    (4, 1): 73.0, (4, 2): 85.0, (4, 3): 98.0,
}  # fmt: skip
_DENSE_INSTRUCTIONS = {2: 110.0, 3: 230.0, 4: 250.0}
# Clocks of a round, a step of all warps of a block, that nothing hides, by groups: fitted to whole products on an H200
# with one and three groups, when a warp had the codes of one step on their way and not of two.
_ROUND_LATENCY = {1: 350.0, 2: 700.0, 3: 1000.0}
ARGUMENTS = kernels_cu.structure(SOURCE, "Quip")


class Quip(IncoherentKernel[E8PSpec, E8PWeight]):
    """E8P weights of 2, 3 and 4 bit and every Hadamard matrix; many rows of x by slices of What and cuBLAS.

    Up to 4 rows of rotated x are four digits of base 256 times a power of two for each row: the error is that of
    float32. More have three digits, about 1e-5 of the result's norm; beyond 48 rows they are fp16, as the weights of 3
    and 4 bit are then: about 2e-4.
    """

    name = "quip"
    weights = E8PWeight
    rearranged = ("qidxs",)
    few_rows, strip_rows = MATVEC_ROWS, TILE_ROWS

    def unfit_for(self, product: Product[E8PSpec], gpu: Gpu) -> str | None:
        n, (m, k) = product.n, product.spec.shape
        reason = limits.too_many("loads of codes", m // TILE_ROWS * k // STEP * LANES)
        rotated = n * digits(n) * k if n <= MATVEC_ROWS else 0
        return reason or limits.too_many("bytes of rotated x", rotated)

    def arrange(self, weight: E8PWeight) -> Prepared:
        vectors = {"in": weight.SU, "out": weight.SV}
        numbers = {"residual_factor": 1.0 / weight.resid_scale}
        return Prepared(weight.spec, weight.device, arrange_codes(weight) | vectors, numbers)

    def restore(self, prepared: Prepared[E8PSpec], name: str) -> Any:
        return restore_codes(prepared.arrays, prepared.spec)

    def parts(self, n: int) -> tuple[int, type[np.number]]:
        return digits(n), np.int8

    def matvec(self, product: Product[E8PSpec], rotated: Place, sums: Place, gpu: Gpu) -> Launch:
        spec, n, (m, k) = product.spec, product.n, product.spec.shape
        turns, grid, count = -(-n // ROWS), self.blocks(spec, gpu), warps(spec, n, gpu)
        passes = -(-m // TILE_ROWS // grid // _TOGETHER[spec.bits])
        x_bytes = digits(n) * n * k * -(-m // TILE_ROWS // _TOGETHER[spec.bits])
        codes, steps, gathers = _counts(spec)
        again = (turns - 1) * codes if codes <= gpu.l2_bytes else 0
        residuals = 1 if spec.bits == 2 else 2
        return Launch(
            SOURCE,
            instance("quip", spec.bits, groups(n)),
            grid=(grid, turns),
            threads=LANES * count,
            shared_bytes=shared_bytes(spec, n, count),
            arguments=(_arguments(product, 0, m // TILE_ROWS, rotated=rotated, sums=sums),),
            work=Work(
                bytes_read=turns * codes,
                cached_bytes=again,
                l2_bytes=x_bytes + again,
                wavefronts=turns * (gathers + codes / 128) + x_bytes / 128,
                instructions=turns * steps * _INSTRUCTIONS[spec.bits, groups(n)],
                mma=turns * steps * 2 * groups(n) * (residuals + 1 / _TOGETHER[spec.bits]),
                balance=balance(m // TILE_ROWS, gpu.multiprocessors),
                latency=turns * passes * -(-k // STEP // count) * _ROUND_LATENCY[groups(n)],
                multiply_adds=product.multiply_adds,
            ),
        )

    def dequantize(self, product: Product[E8PSpec], first: int, end: int, dense: Place, gpu: Gpu) -> Launch:
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
                instructions=steps * _DENSE_INSTRUCTIONS[spec.bits],
            ),
        )


def _arguments(product: Product[E8PSpec], first_tile: int, count: int, **places: Place) -> Structure:
    """A launch's structure for tiles of 16 rows, null for places that it doesn't use."""
    spec = product.spec
    return structure(
        ARGUMENTS,
        first_tile=first_tile,
        tiles=count,
        steps=spec.in_features // STEP,
        batch=product.n,
        residual_factor=Number("residual_factor"),
        residual=Array("residual") if spec.bits > 2 else 0,
        **{"rotated": 0, "sums": 0, "dense": 0} | places,
    )


def _counts(spec: E8PSpec) -> tuple[int, int, int]:
    """Bytes of the codes, steps of 16 x 64 weights, wavefronts of their gathers."""
    m, k = spec.shape
    steps = m // TILE_ROWS * k // STEP
    # A base vector and its signs take a wavefront each, a point of the ball two: its copies are fewer.
    return spec.bits * m * k // 8, steps, steps * (8 if spec.bits == 2 else 16)


def digits(n: int) -> int:
    """Of base 256, that a number of x becomes."""
    return 4 if n <= EXACT_ROWS else 3


def groups(n: int) -> int:
    """Of eight columns, that x takes: all digits of two rows, or one of eight."""
    return -(-n // 2) if n <= EXACT_ROWS else 3


def warps(spec: E8PSpec, n: int, gpu: Gpu) -> int:
    """Of a block: one a step of K, as many as there are and have room for their partial sums."""
    most = min(MAX_WARPS, spec.in_features // STEP)
    return max(count for count in range(1, most + 1) if shared_bytes(spec, n, count) <= gpu.shared_per_block)


def shared_bytes(spec: E8PSpec, n: int, count: int) -> int:
    """Tables and the partial sums of `count` warps."""
    return _table_bytes(spec) + 4 * count * _TOGETHER[spec.bits] * TILE_ROWS * min(n, ROWS)


def _table_bytes(spec: E8PSpec) -> int:
    return _TABLE_BYTES + (_BALL_BYTES if spec.bits == 3 else 0)


def tables(bits: int) -> np.ndarray:
    """uint32 words of eight nibbles: [256][2v + 8 of a base vector, what a sign byte turns over in one] and, for 3 bit,
    2v + 8 of the ball's points [256] behind them."""
    flips = 14 * (e8p_codebook.sign_vectors() < 0) + e8p_codebook.parity(np.arange(256))[:, None]
    pairs = np.stack([_packed(2 * e8p_codebook.abs_vectors() + 8), _packed(flips)], 1).ravel()
    return pairs if bits != 3 else np.concatenate([pairs, _packed(2 * e8p_codebook.residual_grid() + 8)])


def _packed(nibbles: np.ndarray) -> np.ndarray:
    """uint32 words of nibbles [256, coordinate]."""
    return (nibbles.astype(np.uint32) << 4 * np.array(_NIBBLE, np.uint32)).sum(1, dtype=np.uint32)


def arrange_codes(weight: E8PWeight) -> dict[str, Any]:
    """Codes uint32 [M/16, K/64, 32, 2], a byte of each word's base vector and one of its signs, the residual's by
    themselves, and the tables.

    The ball's indices, eight of a row together in the format, take the order of the codes: uint32 [M/16, K/64, 32].
    """
    qidxs, (m, k) = weight.qidxs, weight.shape
    xp, words = array_module(qidxs), k // 32
    arrays = {"tables": xp.asarray(tables(weight.bits))}
    if weight.bits == 2:
        return arrays | {"codes": with_sign_bytes(qidxs)}
    rest = xp.ascontiguousarray(qidxs[:, words:])
    if weight.bits == 3:
        # row 16 I + 2 g + a, column 8 J + 2 t + b -> byte a + 2 b of word [I, J, g, t]
        indices = rest.view(np.uint8).reshape(m // 16, 8, 2, k // 64, 4, 2)
        rest = xp.ascontiguousarray(indices.transpose(0, 3, 1, 4, 5, 2)).reshape(-1, 4).view(np.uint32)
    else:
        rest = with_sign_bytes(rest)
    return arrays | {"codes": with_sign_bytes(xp.ascontiguousarray(qidxs[:, :words])), "residual": rest}


def restore_codes(arrays: dict[str, Any], spec: E8PSpec) -> Any:
    """The inverse of `arrange_codes`: qidxs int64, as the format has them."""
    codes, (m, k) = without_sign_bytes(arrays["codes"]), spec.shape
    if spec.bits == 2:
        return codes
    xp, rest = array_module(codes), arrays["residual"]
    if spec.bits == 3:
        # byte a + 2 b of word [I, J, g, t] -> row 16 I + 2 g + a, column 8 J + 2 t + b
        indices = rest.view(np.uint8).reshape(m // 16, k // 64, 8, 4, 2, 2)
        rest = xp.ascontiguousarray(indices.transpose(0, 2, 5, 1, 3, 4)).reshape(m, k // 8).view(np.int64)
    else:
        rest = without_sign_bytes(rest)
    return xp.concatenate([codes, rest], 1)


def with_sign_bytes(codes: Any) -> Any:
    """Codes int64 as the format has them, with bit j of word i's signs in bit 8i + j and not in bit 4j + i of the upper
    half: uint32 [..., 2]."""
    halves = codes.view(np.uint32).reshape(*codes.shape, 2).copy()
    scattered, signs = halves[..., 1].copy(), 0
    for j in range(8):
        nibble = scattered >> np.uint32(4 * j) & np.uint32(15)
        spread = nibble * np.uint32(0x00204081) & np.uint32(0x01010101)  # bit i to bit 8i
        signs = (spread << np.uint32(j)) | signs
    halves[..., 1] = signs
    return halves


def without_sign_bytes(halves: Any) -> Any:
    """The inverse of `with_sign_bytes`: int64 of uint32 [..., 2]."""
    codes = halves.copy()
    signs, scattered = codes[..., 1].copy(), 0
    for j in range(8):
        spread = signs >> np.uint32(j) & np.uint32(0x01010101)
        nibble = spread * np.uint32(0x10204080) >> np.uint32(28)  # bit 8i to bit i
        scattered = (nibble << np.uint32(4 * j)) | scattered
    codes[..., 1] = scattered
    return codes.view(np.int64)[..., 0]
