"""Codebooks and scales by least squares of the output: the sum of (w - w') H (w - w')^T over all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.quantize.arithmetic import Arithmetic
from codegemm.quantize.hessian import Matrix
from codegemm.quantize.scaling import halves, row_blocks
from codegemm.quantize.search import Vectors, decode
from codegemm.quantize.sweep import decoded

_STEPS = 8  # of conjugate gradients
_RIDGE = 1e-6


def fit_codebooks(
    matrix: Vectors, codes: npt.NDArray, scales: Vectors, codebooks: Vectors, H: Matrix, ops: Arithmetic
) -> Vectors:
    """Codebooks [m, 2**b, v] with less error than these, for the same codes and scales.

    W' is linear in them, so conjugate gradients get near the best in a few steps, each a product with H [K, K].
    """
    held = ops.put(H)
    counts = np.stack(
        [_added(codes[..., c].ravel(), _per_vector(scales, codes).ravel() ** 2, codebooks.shape[1])
         for c in range(len(codebooks))]
    )[..., None]  # fmt: skip
    if not counts.any():
        return codebooks
    weight = np.maximum(counts, _RIDGE * counts.mean()) * float(np.diagonal(H).mean())

    def gradient(books: Vectors, of_error: bool) -> npt.NDArray[np.float64]:
        """Of the matrix that books make, or of the error it leaves, times H: summed over each centroid's vectors."""
        total = np.zeros(codebooks.shape)
        for rows in row_blocks(matrix):
            dense = decoded(codes[rows], scales[rows], books)
            weighed = ops.get(ops.put(matrix[rows] - dense if of_error else dense) @ held)
            total += _collected(weighed, codes[rows], scales[rows], codebooks.shape)
        return total

    result = codebooks.astype(np.float64)
    left = gradient(codebooks, True)
    direction = better = left / weight
    power = float((left * better).sum())
    for _ in range(_STEPS):
        bend = gradient(direction.astype(np.float32), False)
        curvature = float((direction * bend).sum())
        if not curvature > 0:
            break
        step = power / curvature
        result += step * direction
        left = left - step * bend
        better = left / weight
        power, last = float((left * better).sum()), power
        direction = better + power / last * direction
    return result.astype(np.float32)


def fit_scales(
    weights: Vectors, codes: npt.NDArray, scales: Vectors, codebooks: Vectors, H: Matrix
) -> npt.NDArray[np.float32]:
    """Scales [R, K/g] of rows, halves as float32: all of a row by least squares where that is less error, else these.

    Only rows whose scales all come out positive change.
    """
    count, groups = scales.shape
    plain = decode(codes.reshape(-1, codes.shape[-1]), codebooks).reshape(count, groups, -1)
    size = plain.shape[2]
    wanted = (weights @ H).reshape(plain.shape)
    right = np.einsum("rgk,rgk->rg", plain, wanted, dtype=np.float64)
    normal = np.empty((count, groups, groups))
    for g in range(groups):
        pulled = (plain[:, g] @ H[g * size : (g + 1) * size]).reshape(plain.shape)
        normal[:, g] = np.einsum("rgk,rgk->rg", pulled, plain, dtype=np.float64)
    trace = np.trace(normal, axis1=1, axis2=2) / groups
    ridge = np.where(trace > 0, _RIDGE * trace, 1.0)
    found = np.linalg.solve(normal + ridge[:, None, None] * np.eye(groups), right[..., None])[..., 0]
    with np.errstate(over="ignore"):
        stored = found.astype(np.float16)
    fits = np.logical_and(stored > 0, np.isfinite(stored)).all(1, keepdims=True)
    rounded = halves(np.where(fits, found, scales))

    def error(s: npt.NDArray) -> npt.NDArray[np.float64]:
        s = s.astype(np.float64)
        return np.einsum("rg,rgh,rh->r", s, normal, s, optimize=True) - 2 * (s * right).sum(1)

    return np.where(np.logical_and(fits, (error(rounded) < error(scales))[:, None]), rounded, scales)


def _per_vector(scales: Vectors, codes: npt.NDArray) -> Vectors:
    """Scales [R, K/v]."""
    return np.repeat(scales, codes.shape[1] // scales.shape[1], 1)


def _collected(
    weighed: Vectors, codes: npt.NDArray, scales: Vectors, shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """Sums [m, 2**b, v] over the k-vectors of each centroid, times their scales."""
    m, centroids, v = shape
    vectors = (weighed.reshape(*scales.shape, -1) * scales[..., None]).reshape(-1, v)
    flat: Any = codes.reshape(-1, m)
    return np.stack([np.stack([_added(flat[:, c], column, centroids) for column in vectors.T], 1) for c in range(m)])


def _added(codes: npt.NDArray, values: npt.NDArray, centroids: int) -> npt.NDArray[np.float64]:
    return np.bincount(codes, values, minlength=centroids).astype(np.float64, copy=False)
