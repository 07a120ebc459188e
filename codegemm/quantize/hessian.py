"""The matrix H that weighs errors of a weight, (w - w') H (w - w')^T for a row, in the forms that the search needs."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.formats.rotation import Rotation
from codegemm.locks import ForkSafeLock
from codegemm.quantize.arithmetic import Arithmetic

# Of the mean of H's diagonal, added to it: H of few rows is singular, and what they miss counts a little too.
DAMPING = 0.01

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tie:
    """How the errors of one k-vector weigh on the others, and which error of its own is least.

    matrix: [K, K]; an error e [v] of k-vector i adds e @ matrix[i, j] to the pull on k-vector j. inverse: [K/v, v, v],
    of its blocks on the diagonal. metric: [K/v, v, v]; what remains to be made small is |e @ metric[j]|^2.
    """

    matrix: Any
    inverse: Any
    metric: Any

    def on(self, ops: Arithmetic) -> Tie:
        """The same as arrays of the library that computes."""
        return Tie(*map(ops.put, (self.matrix, self.inverse, self.metric)))


@dataclass(frozen=True)
class Hessian:
    """H, damped and scaled to a diagonal of about 1.

    all: each k-vector is tied to all others by H itself. before: to those before it, by the upper triangle T of
    H = T T^T: |e T|^2 is the error, and its part j depends on the errors up to j alone.
    """

    all: Tie
    before: Tie

    @classmethod
    def of(cls, H: npt.NDArray[np.float64], v: int) -> Hessian:
        """For k-vectors of v columns; dead inputs (zero rows) and a singular H are held by the damping.

        ValueError for an H that can't be X^T X.
        """
        damped = H / np.diagonal(H).mean()
        damped[np.diag_indices(len(damped))] += DAMPING
        own = _diagonal(damped, v)
        try:
            upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            raise ValueError("calibration: its H has negative eigenvalues, as no X^T X has") from None
        own_upper = _diagonal(upper, v)
        return cls(
            Tie(_single(damped), _single(np.linalg.inv(own)), _single(np.linalg.cholesky(own))),
            Tie(_single(upper), _single(np.linalg.inv(own_upper)), _single(own_upper)),
        )


_lock = ForkSafeLock()
_last: tuple[weakref.ref[npt.NDArray], int, Hessian] | None = None


def factored(H: npt.NDArray[np.float64], v: int) -> Hessian:
    """`Hessian.of`, once for matrices with the same inputs that are quantised together or one after the other.

    H: a calibration's, which is never written to.
    """
    global _last
    held = H if H.base is None else H.base
    with _lock:
        if _last is not None and _last[0]() is held and _last[1] == v:
            return _last[2]
        found = Hessian.of(H, v)
        _last = weakref.ref(held), v, found
        return found


def rotated(H: npt.NDArray[np.float64], rotation: Rotation) -> npt.NDArray[np.float64]:
    """H of rotated inputs."""
    half = rotation.rotate(H)
    return rotation.rotate(np.ascontiguousarray(half.T))


def _diagonal(matrix: npt.NDArray, v: int) -> npt.NDArray:
    """The blocks [K/v, v, v] on the diagonal."""
    count = len(matrix) // v
    return np.stack([matrix[j * v : (j + 1) * v, j * v : (j + 1) * v] for j in range(count)])


def _single(matrix: npt.NDArray) -> Matrix:
    return np.ascontiguousarray(matrix, np.float32)
