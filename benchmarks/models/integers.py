"""Integers of a few bits with a scale and a least value a group, as other tools round or fit them: what codebooks are
measured beside.

W'[r, k] = least[r, i] + scales[r, i] * q[r, k] with i = k // g, both of float16, and q in 0 .. 2**bits - 1. `nearest`
takes the nearest of a group's grid; `fed_back` rounds column by column and has the columns behind make good for what
was lost, as GPTQ does (Frantar et al., arXiv:2210.17323), with what its authors' code has as options: the columns in
the order of their inputs' sizes, grids of groups as they were before, and those grids that lose least.
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
# Of the range of a group's weights, one of which its grid can have: the greatest weights may lie outside it.
_SHARES = np.linspace(0.98, 0.4, 30)
_NORM = 2.4  # the power of errors by which grids are compared, as GPTQ's authors have it
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
        """The columns of W [M, K] one after the other, those of the largest inputs first, with the errors of each fed
        back to those behind it.

        H: X^T X [K, K] of the inputs, symmetric; 1 % of the mean of its diagonal is added to that. A group's grid is
        the one that is best for its weights before any has changed. ValueError for matrices that can't be these.
        """
        given = _checked(W)
        H = _damped(H, given.shape[1])
        order = np.argsort(-np.diagonal(H), kind="stable")
        upper = _feedback(H[np.ix_(order, order)])
        grids = [self._best(given[:, columns]) for columns in self._groups(len(order))]
        matrix = given[:, order].astype(np.float64)
        rounded = np.empty_like(matrix)
        for begin in range(0, len(order), _SPAN):
            end = min(begin + _SPAN, len(order))
            errors = np.empty((len(matrix), end - begin))
            for k in range(begin, end):
                column = matrix[:, k : k + 1]
                rounded[:, k : k + 1] = grids[order[k] // self._width(len(order))].nearest(column)
                error = (column - rounded[:, k : k + 1]) / upper[k, k]
                matrix[:, k:end] -= error * upper[k, k:end]
                errors[:, k - begin : k - begin + 1] = error
            matrix[:, end:] -= errors @ upper[begin:end, end:]
        result = np.empty_like(given)
        result[:, order] = rounded
        return Rounded(result, self.bits_per_weight(len(order)))

    def _groups(self, columns: int) -> Iterator[slice]:
        width = self._width(columns)
        for begin in range(0, columns, width):
            yield slice(begin, min(begin + width, columns))

    def _width(self, columns: int) -> int:
        return columns if self.group == -1 else self.group

    def _grid(self, weights: npt.NDArray, share: float = 1) -> _Grid:
        """From the least to the greatest of each row, or a share of that, as float16 has the least and the step."""
        low, high = share * weights.min(1, keepdims=True), share * weights.max(1, keepdims=True)
        least = low.astype(np.float16).astype(np.float64)
        most = (1 << self.bits) - 1
        step = (np.maximum(high - least, 0) / most).astype(np.float16).astype(np.float64)
        return _Grid(least, step, most)

    def _best(self, weights: npt.NDArray) -> _Grid:
        """Of the grids over some share of each row the one that loses least."""
        best = self._grid(weights)
        least = best.loss(weights)
        for share in _SHARES:
            grid = self._grid(weights, share)
            loss = grid.loss(weights)
            better = loss < least
            best = _Grid(np.where(better, grid.least, best.least), np.where(better, grid.step, best.step), best.most)
            least = np.minimum(loss, least)
        return best


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

    def loss(self, weights: npt.NDArray) -> npt.NDArray[np.float64]:
        """By rounding weights [M, n] so, of each row [M, 1]."""
        return (np.abs(weights - self.nearest(weights)) ** _NORM).sum(1, keepdims=True)


def _checked(W: npt.ArrayLike) -> Matrix:
    matrix = np.asarray(W, np.float32)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"W: shape {matrix.shape}, must be [out_features, in_features]")
    most = float(np.abs(matrix).max())
    if not most <= np.finfo(np.float16).max / 2:
        raise ValueError(f"W: {most:g} in it; float16 must have it, and the difference of two")
    return matrix


def _damped(H: npt.ArrayLike, columns: int) -> npt.NDArray[np.float64]:
    damped = np.array(H, np.float64)
    if damped.shape != (columns, columns):
        raise ValueError(f"H: shape {damped.shape}, must be {(columns, columns)} for W of {columns} columns")
    mean = float(np.diagonal(damped).mean())
    if not (np.isfinite(damped).all() and mean > 0):
        raise ValueError(f"H: mean {mean:g} of its diagonal, must be positive, and all numbers finite")
    damped[np.diag_indices(columns)] += DAMPING * mean
    return damped


def _feedback(H: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """U [K, K], upper triangular, with H^-1 = U^T U: row k, divided by its first number, says what an error of column
    k is to change in those behind it."""
    try:
        return np.linalg.cholesky(np.linalg.inv(H)).T
    except np.linalg.LinAlgError:
        raise ValueError("H: must be X^T X of something: it has negative eigenvalues") from None
