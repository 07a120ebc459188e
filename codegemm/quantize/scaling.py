"""Group scales, and the vectors that a matrix is made of once it is divided by them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from codegemm.quantize.search import Vectors

_BLOCK = 1 << 20  # weights at a time, so that a large matrix is never held twice
# Exponents: of typical weights whose codebooks are of unit variance, of the least and largest scales and centroids.
_ORDINARY, _SMALLEST, _LARGEST = 10, -14, 15


def row_blocks(matrix: Vectors) -> Iterator[slice]:
    """Slices of rows that together are matrix [M, K]."""
    step = max(1, _BLOCK // matrix.shape[1])
    for first in range(0, len(matrix), step):
        yield slice(first, min(first + step, len(matrix)))


def level(matrix: Vectors, sizes: npt.NDArray[np.float64]) -> float:
    """The power of two that codebooks take from W, so that scales and centroids both stay normal halves.

    sizes: root mean squares [M, K/g] of the groups. Those of small groups beside large ones of their row may fall
    below, rows may not: ValueError where they are too small, too large or too different for that.
    """
    rows = sizes.max(1)
    rows = rows[rows != 0]
    if not len(rows):
        return 1.0
    typical = np.log2(np.sqrt((sizes**2).mean()))
    wanted = 0 if abs(typical) <= _ORDINARY else np.round(typical / 2)
    least = max(np.log2(rows.max()) - _LARGEST, _SMALLEST)
    most = min(np.log2(rows.min()) - _SMALLEST, _LARGEST - np.log2(_peak(matrix, sizes)))
    exponent = max(np.ceil(least), np.floor(min(wanted, most, np.log2(sizes[sizes > 0].min()) - _SMALLEST)))
    if not exponent <= most:
        raise ValueError(
            f"W: the largest weight is {abs(matrix).max():.3g}, root mean squares of rows are from {rows.min():.3g} to "
            f"{rows.max():.3g}: these do not fit float16 scales times float16 centroids"
        )
    return float(2.0**exponent)


def _peak(matrix: Vectors, sizes: npt.NDArray[np.float64]) -> float:
    """The largest weight in terms of its group's size."""
    peak = 1.0
    for rows in row_blocks(matrix):
        largest = abs(matrix[rows]).reshape(-1, sizes.shape[1], matrix.shape[1] // sizes.shape[1]).max(-1)
        peak = max(
            peak, float(np.divide(largest, sizes[rows], out=np.ones(largest.shape), where=sizes[rows] > 0).max())
        )
    return peak


def root_mean_squares(matrix: Vectors, group: int) -> npt.NDArray[np.float64]:
    """Of each group of matrix [M, K], [M, K/group]."""
    rms = np.empty((len(matrix), matrix.shape[1] // group))
    for rows in row_blocks(matrix):
        groups = matrix[rows].reshape(-1, rms.shape[1], group)
        rms[rows] = np.sqrt((groups.astype(np.float64) ** 2).mean(-1))
    return rms


def halves(values: npt.NDArray) -> Vectors:
    """Rounded to float16, as float32; ValueError where that overflows."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise ValueError(f"W: weights of magnitude {np.abs(values).max():.3g} do not fit float16")
    return rounded.astype(np.float32)


def reciprocal(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1 / scales; zero where a scale is zero."""
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)


def normalised(rows: Vectors, scales: Vectors, v: int) -> Vectors:
    """Vectors [n, v] of rows [R, K] divided by scales [R, K/g]."""
    groups = rows.reshape(*scales.shape, -1)
    return (groups * reciprocal(scales)[..., None]).reshape(-1, v)


class Sampler:
    """Draws vectors of a matrix divided by its scales, for codebooks that are to minimise the error of the matrix."""

    def __init__(self, matrix: Vectors, scales: Vectors, v: int, count: int, rng: np.random.Generator) -> None:
        self._matrix, self._scales, self._v, self._count, self.rng = matrix, scales.ravel(), v, count, rng
        weights = self._scales.astype(np.float64) ** 2
        per_group = matrix.size // v // len(weights)
        self._cumulative = np.cumsum(weights)
        if not self._cumulative[-1] > 0:
            weights = np.ones_like(weights)
        self.draws_all = matrix.size // v <= count
        if self.draws_all:
            self._all = normalised(matrix, scales, v), np.repeat(weights, per_group)

    def __call__(self) -> tuple[Vectors, npt.NDArray[np.float64]]:
        """Vectors [n, v] and how much each counts [n]: all of a small matrix, else some by their scale's square."""
        if self.draws_all:
            return self._all
        # One from each of `count` equal strata: vectors of equal weight are drawn equally often.
        strata = (np.arange(self._count) + self.rng.random(self._count)) / self._count
        group = np.searchsorted(self._cumulative, strata * self._cumulative[-1], side="right")
        group = np.minimum(group, len(self._scales) - 1)
        vectors = self._matrix.reshape(len(self._scales), -1, self._v)
        chosen = vectors[group, self.rng.integers(0, vectors.shape[1], self._count)]
        return chosen * reciprocal(self._scales[group])[:, None], np.ones(self._count)
