"""Integers of a few bits with a scale and a least value a group, as other tools round or fit them: what codebooks are
measured beside.

W'[r, k] = least[r, i] + scales[r, i] * q[r, k] with i = k // g, both of float16, and q in 0 .. 2**bits - 1. `nearest`
takes the nearest of a group's grid; `fed_back` rounds column by column and has the columns behind make good for what
was lost, as GPTQ does (Frantar et al., arXiv:2210.17323).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from codegemm.quantize.hessian import DAMPING

BITS = range(2, 9)
_HALVES = 2 * 16  # bits of what a group has beside its integers
_SPAN = 128  # columns whose errors reach those behind them together, by one product
_NAME = re.compile(r"int([1-9])g(-1|[1-9]\d*)")

Matrix = npt.NDArray[np.float32]


class Rounded(NamedTuple):
    """What became of W: W' as float32 [M, K], and the bits of a weight with its share of its group's float16."""

    matrix: Matrix
    bits_per_weight: float


@dataclass(frozen=True)
class Integers:
    """bits: of an integer, 2 to 8; group: columns that have a scale in common, -1: all. The last group of a row may be
    short. ValueError for other numbers."""

    bits: int
    group: int

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits={self.bits}: must be from {BITS[0]} to {BITS[-1]}")
        if self.group != -1 and self.group < 1:
            raise ValueError(f"group={self.group}: must be at least 1, or -1 for the whole row")

    @classmethod
    def parse(cls, name: str) -> Integers:
        """Of a name like `int4g128`; ValueError for another."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r}: must be like int4g128, or int4g-1 for whole rows")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"int{self.bits}g{self.group}"

    def bits_per_weight(self, columns: int) -> float:
        """Of a row of so many columns, scales and least values included."""
        return self.bits + _HALVES * len(list(self._groups(columns))) / columns

    def nearest(self, W: npt.ArrayLike) -> Rounded:
        """Each weight of W [M, K] as the nearest number of its group's grid; ValueError for what is no such matrix."""
        matrix = _checked(W)
        rounded = np.empty_like(matrix)
        for columns in self._groups(matrix.shape[1]):
            part = matrix[:, columns]
            rounded[:, columns] = self._grid(part).nearest(part)
        return Rounded(rounded, self.bits_per_weight(matrix.shape[1]))

    def fed_back(self, W: npt.ArrayLike, H: npt.ArrayLike) -> Rounded:
        """The columns of W [M, K] one after the other, with the errors of each fed back to those behind it.

        H: X^T X [K, K] of the inputs, symmetric; 1 % of the mean of its diagonal is added to that. A group's grid is
        that of its weights when its turn comes. ValueError for matrices that can't be these.
        """
        matrix = _checked(W).astype(np.float64)
        upper = _feedback(H, matrix.shape[1])
        rounded = np.empty_like(matrix)
        for group in self._groups(matrix.shape[1]):
            grid = self._grid(matrix[:, group])
            for begin in range(group.start, group.stop, _SPAN):
                end = min(begin + _SPAN, group.stop)
                errors = np.empty((len(matrix), end - begin))
                for k in range(begin, end):
                    column = matrix[:, k : k + 1]
                    rounded[:, k : k + 1] = grid.nearest(column)
                    error = (column - rounded[:, k : k + 1]) / upper[k, k]
                    matrix[:, k:end] -= error * upper[k, k:end]
                    errors[:, k - begin : k - begin + 1] = error
                matrix[:, end:] -= errors @ upper[begin:end, end:]
        return Rounded(rounded.astype(np.float32), self.bits_per_weight(matrix.shape[1]))

    def _groups(self, columns: int) -> Iterator[slice]:
        size = columns if self.group == -1 else self.group
        for begin in range(0, columns, size):
            yield slice(begin, min(begin + size, columns))

    def _grid(self, weights: npt.NDArray) -> _Grid:
        """From the least to the greatest of each row, as float16 has the least and the step."""
        low, high = weights.min(1, keepdims=True), weights.max(1, keepdims=True)
        least = low.astype(np.float16).astype(np.float64)
        most = (1 << self.bits) - 1
        step = (np.maximum(high - least, 0) / most).astype(np.float16).astype(np.float64)
        return _Grid(least, step, most)


@dataclass(frozen=True)
class _Grid:
    """The numbers that a group's weights can be, of each row: least + step * (0 .. most)."""

    least: npt.NDArray[np.float64]
    step: npt.NDArray[np.float64]
    most: int

    def nearest(self, weights: npt.NDArray) -> npt.NDArray[np.float64]:
        """Of them, to each weight [M, n]."""
        divisor = np.where(self.step > 0, self.step, 1)
        return self.least + self.step * np.clip(np.rint((weights - self.least) / divisor), 0, self.most)


def _checked(W: npt.ArrayLike) -> Matrix:
    matrix = np.asarray(W, np.float32)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"W: shape {matrix.shape}, must be [out_features, in_features]")
    most = float(np.abs(matrix).max())
    if not most <= np.finfo(np.float16).max / 2:
        raise ValueError(f"W: {most:g} in it; float16 must have it, and the difference of two")
    return matrix


def _feedback(H: npt.ArrayLike, columns: int) -> npt.NDArray[np.float64]:
    """U [K, K], upper triangular, with H^-1 = U^T U: row k, divided by its first number, says what an error of column
    k is to change in those behind it."""
    damped = np.array(H, np.float64)
    if damped.shape != (columns, columns):
        raise ValueError(f"H: shape {damped.shape}, must be {(columns, columns)} for W of {columns} columns")
    mean = float(np.diagonal(damped).mean())
    if not (np.isfinite(damped).all() and mean > 0):
        raise ValueError(f"H: mean {mean:g} of its diagonal, must be positive, and all numbers finite")
    damped[np.diag_indices(columns)] += DAMPING * mean
    try:
        return np.linalg.cholesky(np.linalg.inv(damped)).T
    except np.linalg.LinAlgError:
        raise ValueError("H: must be X^T X of something: it has negative eigenvalues") from None
