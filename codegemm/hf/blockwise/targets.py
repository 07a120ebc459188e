"""What a matrix is to become, given the inputs that it will have: not W itself, for those are no longer W's own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from codegemm.quantize.hessian import DAMPING

Matrix = npt.NDArray[np.float32]


def damped(own: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """X^T X [K, K] with a little of its mean diagonal added, so that it can be solved for."""
    found, mean = own.copy(), float(np.diagonal(own).mean())
    found[np.diag_indices(len(found))] += DAMPING * (mean or 1.0)
    return found


def correction(own: npt.NDArray[np.float64], cross: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What W [M, K] is multiplied by, from the right, and added to itself: then its products with the rows X that the
    quantised model has are as near as they can be to those of W with the rows O that the original has.

    own: X^T X, cross: O^T X, both [K, K].

    |X W'^T - O W^T|^2 is least for W' = W (O^T X) (X^T X)^-1; the damping keeps what the rows don't tell as it is.
    """
    return _divided(cross - own, own)


def addition(own: npt.NDArray[np.float64], lost: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What is added to W [M, K] so that its products also make good what a stream has lost, D: |X A^T - D|^2 is least
    for A = (D^T X) (X^T X)^-1. lost: D^T X [M, K]."""
    return _divided(lost, own)


def corrected(matrix: Matrix, change: npt.NDArray[np.float64], added: npt.NDArray[np.float64] | None = None) -> Matrix:
    """The matrix that takes W's place, to be quantised: W (1 + change) + added."""
    whole = matrix + matrix.astype(np.float64) @ change
    return np.ascontiguousarray(whole if added is None else whole + added, np.float32)


def _divided(numerator: npt.NDArray[np.float64], own: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """numerator (X^T X)^-1."""
    return np.asarray(np.linalg.solve(damped(own), numerator.T).T, np.float64)


def relative_error(matrix: Matrix, other: Matrix, own: npt.NDArray[np.float64] | None = None) -> float:
    """|W - W'|^2 / |W|^2; with X^T X that of outputs, |X (W - W')^T|^2 / |X W^T|^2."""
    gap = (matrix - other).astype(np.float64)
    whole = matrix.astype(np.float64)
    if own is None:
        wrong, all_of_it = float(np.square(gap).sum()), float(np.square(whole).sum())
    else:
        wrong, all_of_it = (float(np.einsum("mk,mk->", each @ own, each)) for each in (gap, whole))
    return wrong / all_of_it if all_of_it else 0.0
