"""Hadamard matrices of every order that QuIP# uses, and fast multiplication by them.

A length n is written K * 2**s; the orthogonal transform is U_n = (hadK kron Sylvester(2**s)) / sqrt(n). The matrices
hadK are made here from their constructions (Paley I and II, Williamson), not stored.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

# The first of these that leaves a power of two is the K of a length, as in QuIP#.
ORDERS = (172, 156, 140, 124, 116, 108, 60, 52, 36, 28, 20, 12)

_PALEY_TWO = (28, 36)

_BLOCK = 1 << 15  # numbers that are transformed together, for they stay in a cache

# First rows of the symmetric circulants A, B, C, D of a Williamson matrix of order 4 * len.
_WILLIAMSON = {
    52: ("+-+--++++--+-", "+---++++++---", "++-+--++--+-+", "+----+--+----"),
    116: (
        "++--+--+-+++-++++-+++-+--+--+",
        "++++-++-+---++++++---+-++-+++",
        "+-+---++--+-++++++-+--++---+-",
        "+++---++--+-+----+-+--++---++",
    ),
    124: (
        "+--+++-+--+----++----+--+-+++--",
        "+--+++-+--+----++----+--+-+++--",
        "+-----+++-+-+--++--+-+-+++-----",
        "++++++---+-+-++--++-+-+---+++++",
    ),
    156: (
        "+++--+-+-----+--++----++--+-----+-+--++",
        "++++---+--++----+-+--+-+----++--+---+++",
        "+++--++-+---+-+--+----+--+-+---+-++--++",
        "+---++-+-+-----+++-++-+++-----+-+-++---",
    ),
    172: (
        "+---++--++++-+-+++-++--++-+++-+-++++--++---",
        "++-++++++----+-+--++-++-++--+-+----++++++-+",
        "+++-+-++--+-+-++++-+----+-++++-+-+--++-+-++",
        "++---++++-+--+--++--------++--+--+-++++---+",
    ),
}


def _legendre(q: int) -> npt.NDArray[np.int8]:
    """The quadratic character of 0 .. q-1 modulo the prime q: 0, or +-1."""
    character = np.full(q, -1, np.int8)
    character[np.arange(1, q) ** 2 % q] = 1
    character[0] = 0
    return character


def _circulant(first_row: npt.NDArray) -> npt.NDArray:
    index = np.arange(len(first_row))
    return first_row[(index[None, :] - index[:, None]) % len(first_row)]


def _paley_one(order: int) -> npt.NDArray[np.int8]:
    matrix = np.ones((order, order), np.int8)
    matrix[0, 1:] = -1
    first_row = -_legendre(order - 1)
    first_row[0] = 1
    matrix[1:, 1:] = _circulant(first_row)
    return matrix


def _paley_two(order: int) -> npt.NDArray[np.int8]:
    half = order // 2
    conference = np.ones((half, half), np.int8)
    conference[0, 0] = 0
    conference[1:, 1:] = _circulant(_legendre(half - 1))
    eye = np.eye(half, dtype=np.int8)
    return np.block([[conference + eye, conference - eye], [conference - eye, -conference - eye]])


def _williamson(order: int) -> npt.NDArray[np.int8]:
    rows = [np.array([1 if s == "+" else -1 for s in text], np.int8) for text in _WILLIAMSON[order]]
    a, b, c, d = map(_circulant, rows)
    return np.block([[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]])


@cache
def hadamard(order: int) -> npt.NDArray[np.int8]:
    """hadK for an order of `ORDERS` (or 1): int8 [order, order] of +-1, H @ H.T = order * I."""
    if order == 1:
        matrix = np.ones((1, 1), np.int8)
    elif order not in ORDERS:
        raise ValueError(f"Hadamard order {order}: must be 1 or one of {sorted(ORDERS)}")
    elif order in _WILLIAMSON:
        matrix = _williamson(order)
    else:
        matrix = _paley_two(order) if order in _PALEY_TWO else _paley_one(order)
    matrix.flags.writeable = False
    return matrix


def split_length(n: int) -> tuple[int, int]:
    """(K, 2**s) with n = K * 2**s, the K that QuIP# takes; ValueError where there is none."""
    if n < 1:
        raise ValueError(f"length {n}: must be at least 1")
    for order in (*ORDERS, 1):
        rest, remainder = divmod(n, order)
        if remainder == 0 and rest & (rest - 1) == 0:
            return order, rest
    raise ValueError(f"length {n}: must be a power of two times 1 or one of {sorted(ORDERS)} for a Hadamard transform")


def transform(x: npt.NDArray, *, transpose: bool = False) -> npt.NDArray:
    """x [..., n] @ U_n^T along the last axis (U_n applied to each row); U_n^T with `transpose`.

    Computed in x's floating dtype.
    """
    n = x.shape[-1]
    order, power = split_length(n)
    y = np.array(x, copy=True, order="C").reshape(-1, power)
    walsh_hadamard(y)
    if order > 1:
        matrix = hadamard(order).astype(x.dtype)
        y = (matrix.T if transpose else matrix) @ y.reshape(-1, order, power)
    y *= x.dtype.type(1 / np.sqrt(n))
    return y.reshape(x.shape)


def walsh_hadamard(y: npt.NDArray) -> None:
    """Sylvester's matrix times every row of y [rows, a power of two], contiguous, in place."""
    rows, length = y.shape
    together, inner = max(1, _BLOCK // length), 1 << (length.bit_length() - 1) // 2
    for first in range(0, rows, together):
        # In two halves of the steps, so that what is added at once is never short: the first half on a turned copy.
        halves = y[first : first + together].reshape(-1, length // inner, inner)
        turned = halves.swapaxes(1, 2).copy()
        _add_and_subtract(turned)
        halves[...] = turned.swapaxes(1, 2)
        _add_and_subtract(halves)


def _add_and_subtract(y: npt.NDArray) -> None:
    """Sylvester's matrix along the middle axis of y [rows, a power of two, n], contiguous, in place."""
    step = 1
    while step < y.shape[1]:
        pairs = y.reshape(-1, 2, step * y.shape[2])
        low = pairs[:, 0].copy()
        pairs[:, 0] += pairs[:, 1]
        np.subtract(low, pairs[:, 1], out=pairs[:, 1])
        step *= 2
