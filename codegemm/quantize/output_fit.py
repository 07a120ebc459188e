"""Codebooks and scales by least squares of the output: the sum of (w - w') H (w - w')^T over all rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from codegemm.formats.codebook import decode, decode_rows
from codegemm.quantize.arithmetic import Arithmetic
from codegemm.quantize.hessian import Matrix
from codegemm.quantize.least_squares import collected
from codegemm.quantize.scaling import halves, row_blocks
from codegemm.quantize.search import Vectors

_STEPS = 8  # of conjugate gradients
_RIDGE = 1e-6


def fit_codebooks(
    matrix: Vectors, codes: npt.NDArray, scales: Vectors, codebooks: Vectors, H: Matrix, ops: Arithmetic
) -> Vectors:
    """Codebooks [m, 2**b, v] with less error than these, for the same codes and scales.

    W' is linear in them, so conjugate gradients get near the best in a few steps, each a product with H [K, K].
    """
    held = ops.put(H)
    v, centroids = codebooks.shape[2], codebooks.shape[1]

    per_vector = np.repeat(scales, codes.shape[1] // scales.shape[1], 1)
    counts = collected(per_vector.reshape(-1, 1) ** 2, codes.reshape(-1, len(codebooks)), centroids)
    if not counts.any():
        return codebooks
    weight = np.maximum(counts, _RIDGE * counts.mean()) * float(np.diagonal(H).mean())

    def gradient(books: Vectors, of_error: bool) -> npt.NDArray[np.float64]:
        """Of the matrix that books make, or of the error it leaves, times H: summed over each centroid's vectors,
        each of them times its scale."""
        total = np.zeros(codebooks.shape)
        for rows in row_blocks(matrix):
            dense = decode_rows(codes[rows], books, scales[rows])
            weighed = ops.get(ops.put(matrix[rows] - dense if of_error else dense) @ held)
            groups = weighed.reshape(*scales[rows].shape, -1) * scales[rows][..., None]
            total += collected(groups.reshape(-1, v), codes[rows].reshape(-1, len(codebooks)), centroids)
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
    plain = decode(codes, codebooks).reshape(count, groups, -1)
    size = plain.shape[2]
    wanted = (weights @ H).reshape(plain.shape)
    right = np.einsum("rgk,rgk->rg", plain, wanted, dtype=np.float64)
    normal = np.empty((count, groups, groups))
    for g in range(groups):
        pulled = (plain[:, g] @ H[g * size : (g + 1) * size]).reshape(plain.shape)
        normal[:, g] = np.einsum("rgk,rgk->rg", pulled, plain, dtype=np.float64)
    trace = np.trace(normal, axis1=1, axis2=2) / groups
    ridge = np.where(trace > 0, _RIDGE * trace, 1.0)
    solution = np.linalg.solve(normal + ridge[:, None, None] * np.eye(groups), right[..., None])[..., 0]
    with np.errstate(over="ignore"):
        stored = solution.astype(np.float16)
    fits = np.logical_and(stored > 0, np.isfinite(stored)).all(1, keepdims=True)
    rounded = halves(np.where(fits, solution, scales))

    def error(s: npt.NDArray) -> npt.NDArray[np.float64]:
        s = s.astype(np.float64)
        return np.einsum("rg,rgh,rh->r", s, normal, s, optimize=True) - 2 * (s * right).sum(1)

    return np.where(np.logical_and(fits, (error(rounded) < error(scales))[:, None]), rounded, scales)
