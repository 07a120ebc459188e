"""QTIP's trellis (Tseng et al., 2024; its HYB code): states read from a tile's bits, and the pairs they stand for.

A tile of 16 x 16 weights is 128 steps of two weights each. Step i's state is a window of 16 bits that begins at bit
i * 2k of the tile's 256 k bits, read cyclically (tail-biting), the first bit the most significant. Of state s and
h = s (s + 1) mod 2^16 the pair is row (h >> 6) & 511 of a table of 512, its first weight negated where bit 15 of h is
set.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TILE = 16  # rows and columns
PAIR = 2  # weights of a step
STEPS = TILE * TILE // PAIR
WINDOW = 16  # bits of a state
TABLE = 512  # pairs
BLOCK = 2 * TILE  # rows and columns whose tiles are stored together
_LANES = 32  # of a warp, whose pieces of a tile follow each other
# Step i of a tile as axes [row % 8, column pair % 4, column / 8, row / 8]: an operand of mma.m16n8k16, lane by lane.
_STEP_AXES = (8, 4, 2, 2)


def hashes(states: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """h of states."""
    return states * (states + np.uint16(1))


def grid(table: npt.NDArray, dtype: npt.DTypeLike) -> npt.NDArray:
    """The pair of every state, [65536, 2], of a table [512, 2]."""
    h = hashes(np.arange(1 << WINDOW, dtype=np.uint16))
    pairs = table.astype(dtype)[h >> 6 & TABLE - 1]
    pairs[h >= 1 << 15, 0] *= -1
    return pairs


def states(words: npt.NDArray[np.uint16], bits: int) -> npt.NDArray[np.uint16]:
    """States [tiles, 128] of tiles' bits, words uint16 [tiles, 16k], the first bit the most significant."""
    place, skipped = np.divmod(np.arange(0, WINDOW * words.shape[1], PAIR * bits), WINDOW)
    here, behind = words.take(place, axis=1), words.take(place + 1, axis=1, mode="wrap")
    both = here.astype(np.uint32) << WINDOW | behind
    return (both >> (WINDOW - skipped).astype(np.uint32)).astype(np.uint16)


def words(states: npt.NDArray[np.uint16], bits: int) -> npt.NDArray[np.uint16]:
    """The inverse of `states`: each state's first 2k bits, one after the other."""
    first = np.unpackbits(states[..., None].astype(">u2").view(np.uint8), axis=2)[..., : PAIR * bits]
    return np.packbits(first.reshape(len(states), -1), axis=1).view(">u2").astype(np.uint16)


def untile(pairs: npt.NDArray, shape: tuple[int, int]) -> npt.NDArray:
    """The matrix [M, K] of its tiles' pairs [tiles, 128, 2], tiles in the order of rows."""
    rows, columns = shape
    axes = pairs.reshape(rows // TILE, columns // TILE, *_STEP_AXES, PAIR)
    return axes.transpose(0, 5, 2, 1, 4, 3, 6).reshape(shape)


def tile(matrix: npt.NDArray) -> npt.NDArray:
    """The inverse of `untile`: [tiles, 128, 2] of a matrix [M, K]."""
    rows, columns = matrix.shape
    axes = matrix.reshape(rows // TILE, 2, 8, columns // TILE, 2, 4, PAIR)
    return axes.transpose(0, 3, 2, 5, 4, 1, 6).reshape(-1, STEPS, PAIR)


def pack(words: npt.NDArray[np.uint16], shape: tuple[int, int]) -> npt.NDArray[np.int16]:
    """Words [tiles, 16k] as QTIP's kernels read them, int16 [tiles, 16k]: of every 2 x 2 tiles the 32 pieces of k
    bytes, a lane's four together, each with its first bit the most significant."""
    rows, columns = shape
    pieces = words.astype(">u2").view(np.uint8).reshape(rows // BLOCK, 2, columns // BLOCK, 2, _LANES, -1)
    packed = np.ascontiguousarray(pieces.transpose(0, 2, 4, 3, 1, 5)[..., ::-1])
    return packed.reshape(len(words), -1).view(np.int16)


def unpack(trellis: npt.NDArray[np.int16], shape: tuple[int, int]) -> npt.NDArray[np.uint16]:
    """The inverse of `pack`."""
    rows, columns = shape
    pieces = np.ascontiguousarray(trellis).view(np.uint8).reshape(rows // BLOCK, columns // BLOCK, _LANES, 2, 2, -1)
    plain = np.ascontiguousarray(pieces[..., ::-1].transpose(0, 4, 1, 3, 2, 5))
    return plain.reshape(len(trellis), -1).view(">u2").astype(np.uint16)
