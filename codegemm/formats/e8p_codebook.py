"""The E8P lattice codebook of QuIP#, made from its definition, and the packing of its codes.

A code is 16 bits: abs index << 8 | sign byte. The abs index names one of 256 vectors of odd multiples of 1/2; the sign
byte flips an even number of its coordinates (its parity p is stored in bit 0) and the vector moves by +1/4 (p = 0) or
-1/4 (p = 1) in every coordinate.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

DIM = 8
# Bit of the sign byte that negates coordinate i.
SIGN_BIT = (0, 4, 1, 5, 2, 6, 3, 7)
# Divisors of the residual codebook: 4 bit (E8P again) and 3 bit (the 256-point E8 ball).
DEFAULT_RESID_SCALE = {4: 3.45, 3: 2.04}

# Of the norm-12 vectors, those whose three coordinates 1/2 stand here (the other five are 3/2) complete the 256.
_NORM_12 = [
    "123",
    "023",
    "013",
    "012",
    "367",
    "357",
    "347",
    "356",
    "346",
    "345",
    "267",
    "257",
    "247",
    "256",
    "246",
    "245",
    "167",
    "157",
    "147",
    "156",
    "146",
    "045",
    "067",
    "057",
    "047",
    "056",
    "046",
    "014",
    "237",
]


@cache
def abs_vectors() -> npt.NDArray[np.float32]:
    """The 256 base vectors float32 [256, 8]; coordinate 7 is negative where that makes the sum even."""
    halves = np.array(list(product((0.5, 1.5, 2.5, 3.5), repeat=DIM)), np.float32)
    inner = halves[(halves**2).sum(1) <= 10]
    outer = np.full((len(_NORM_12), DIM), 1.5, np.float32)
    for row, places in zip(outer, _NORM_12):
        row[[int(place) for place in places]] = 0.5
    vectors = np.concatenate([inner, outer])
    vectors[vectors.sum(1) % 2 == 1, 7] *= -1
    vectors.flags.writeable = False
    return vectors


@cache
def sign_vectors() -> npt.NDArray[np.float32]:
    """The factors +-1 of each sign byte, float32 [256, 8]."""
    byte = np.arange(256)
    effective = byte ^ parity(byte)
    vectors = 1 - 2 * (effective[:, None] >> np.array(SIGN_BIT) & 1).astype(np.float32)
    vectors.flags.writeable = False
    return vectors


def parity(sign_byte: npt.NDArray) -> npt.NDArray:
    """Parity of the bits of a byte: 0 or 1."""
    folded = sign_byte ^ sign_byte >> 4
    folded = folded ^ folded >> 2
    return (folded ^ folded >> 1) & 1


@cache
def grid() -> npt.NDArray[np.float16]:
    """All 65,536 vectors by code, float16 [65536, 8]."""
    shift = 0.25 - 0.5 * parity(np.arange(256)).astype(np.float32)
    points = abs_vectors()[:, None] * sign_vectors()[None] + shift[None, :, None]
    result = points.reshape(-1, DIM).astype(np.float16)
    result.flags.writeable = False
    return result


@cache
def residual_grid() -> npt.NDArray[np.float32]:
    """The 256-point ball of E8 that codes the residual of the 3-bit form, float32 [256, 8]."""
    whole = np.array(list(product((-1, 0, 1), repeat=DIM)), np.float32)
    whole = whole[((whole**2).sum(1) <= 2) & (whole.sum(1) % 2 == 0)]
    half = np.array(list(product((-0.5, 0.5), repeat=DIM)), np.float32)
    half = half[half.sum(1) % 2 == 0]
    axes = 2 * np.eye(DIM, dtype=np.float32)
    points = np.concatenate([whole, half, axes, -axes[:7]])
    points.flags.writeable = False
    return points


def unpack(qidxs: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """Codes uint16 [M, K/8] of packed words int64 [M, K/32], the order of two mma.m16n8k16 A fragments."""
    rows, words = qidxs.shape
    tiles = np.ascontiguousarray(qidxs).view(np.uint64).reshape(rows // 16, words // 2, 8, 4)
    codes = np.empty((rows // 16, 8, 2, words // 2, 4, 2), np.uint16)  # I, g, row bit, J, t, column bit
    for i in range(4):
        magnitude = tiles >> np.uint64(8 * i) & np.uint64(0xFF)
        sign = np.zeros_like(tiles)
        for j in range(8):
            sign |= (tiles >> np.uint64(32 + 4 * j + i) & np.uint64(1)) << np.uint64(j)
        codes[:, :, i & 1, :, :, i >> 1] = (magnitude << np.uint64(8) | sign).transpose(0, 2, 1, 3)
    return codes.reshape(rows, words * 4)


def pack(codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """The inverse of `unpack`: int64 [M, K/32] of codes uint16 [M, K/8]; M % 16 == 0 and K % 64 == 0."""
    rows, columns = codes.shape
    pieces = codes.astype(np.uint64).reshape(rows // 16, 8, 2, columns // 8, 4, 2)
    words = np.zeros((rows // 16, columns // 8, 8, 4), np.uint64)
    for i in range(4):
        code = pieces[:, :, i & 1, :, :, i >> 1].transpose(0, 2, 1, 3)
        words |= (code >> np.uint64(8)) << np.uint64(8 * i)
        for j in range(8):
            words |= (code >> np.uint64(j) & np.uint64(1)) << np.uint64(32 + 4 * j + i)
    return words.reshape(rows, columns // 4).view(np.int64)
