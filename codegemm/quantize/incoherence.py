"""What QuIP#'s and QTIP's quantisers share: rows made one size, a randomised Hadamard rotation on either side, and
errors that are fed back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from codegemm.formats.rotation import Rotation
from codegemm.quantize.hessian import Tie
from codegemm.quantize.scaling import root_mean_squares
from codegemm.quantize.search import Vectors

_SPAN = 128  # columns whose errors reach those behind them together, by one product

Codes = TypeVar("Codes")


@dataclass(frozen=True)
class Sides:
    """What stands on either side of the core of W [M, K], as its IncoherentWeight will have it.

    The rotation of columns spreads errors over all rows evenly; those of small rows are small, since SV has their size.

    su, sv: random signs float32 [K], [M]. sizes: root mean squares of rows, float64 [M].
    """

    su: npt.NDArray[np.float32]
    sv: npt.NDArray[np.float32]
    sizes: npt.NDArray[np.float64]

    @classmethod
    def of(cls, matrix: Vectors, rng: np.random.Generator) -> Sides:
        """For a matrix [M, K]."""
        rows, columns = matrix.shape
        su, sv = (rng.choice(np.array([-1, 1], np.float32), length) for length in (columns, rows))
        return cls(su, sv, root_mean_squares(matrix, columns)[:, 0])

    @property
    def right(self) -> Rotation:
        """Of whole rows."""
        return Rotation(self.su)

    def halfway(self, matrix: Vectors) -> Vectors:
        """W's rows in one size, rotated, [M, K]; a row of zeros stays one."""
        divisors = np.where(self.sizes > 0, self.sizes, 1).astype(np.float32)
        return self.right.rotate(matrix / divisors[:, None])

    def core(self, halfway: Vectors) -> Vectors:
        """The core [M, K] of what `halfway` gives."""
        return np.ascontiguousarray(Rotation(self.sv).rotate(np.ascontiguousarray(halfway.T)).T)

    def outward(self, core: Vectors) -> Vectors:
        """The inverse of `core`."""
        return np.ascontiguousarray(Rotation(self.sv).unrotate(np.ascontiguousarray(core.T)).T)

    def fitted(self, halfway: Vectors, core: Vectors, tie: Tie | None) -> tuple[npt.NDArray[np.float64], float]:
        """The sizes of rows [M] by which a core [M, K] comes nearest to what `halfway` gives, and the error that they
        leave."""
        wanted, found = (x if tie is None else x @ tie.matrix for x in (halfway, self.outward(core)))
        sizes = _dots(wanted, found) / np.maximum(_dots(found, found), np.finfo(np.float32).tiny)
        gaps = wanted - sizes[:, None].astype(np.float32) * found
        return sizes, float(_dots(gaps, gaps) @ self.sizes**2)


def feed_back(core: Vectors, tie: Tie, width: int, nearest: Callable[[Vectors], tuple[Codes, Vectors]]) -> list[Codes]:
    """The codes of each `width` columns of a core [M, K], chosen for what the errors of columns before them leave to
    mend (as `sweep.choose`).

    tie: of columns to those before them, in k-vectors of `width`. nearest: gives codes for such columns [M, width], and
    what these stand for.
    """
    rows, columns = core.shape
    codes = []
    pull = np.zeros_like(core)
    for first in range(0, columns, _SPAN):
        end = min(first + _SPAN, columns)
        errors = np.empty((rows, end - first), np.float32)
        for begin in range(first, end, width):
            here, j = slice(begin, begin + width), begin // width
            found, near = nearest(core[:, here] + pull[:, here] @ tie.inverse[j])
            codes.append(found)
            error = core[:, here] - near
            pull[:, here.stop : end] += error @ tie.matrix[here, here.stop : end]
            errors[:, begin - first : here.stop - first] = error
        pull[:, end:] += errors @ tie.matrix[first:end, end:]
    return codes


def _dots(a: Vectors, b: Vectors) -> npt.NDArray[np.float64]:
    """Of each row."""
    found: npt.NDArray[np.float64] = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    return found


def held(signs: npt.NDArray[np.float32], scales: npt.NDArray[np.float64], *dtypes: type[np.floating]) -> npt.NDArray:
    """Signs times scales, in the first of the dtypes where it loses no bits to underflow or overflow."""
    used = scales[scales > 0]
    for dtype in dtypes:
        if len(used) == 0 or np.finfo(dtype).tiny <= used.min() <= used.max() <= np.finfo(dtype).max / 2:
            return (signs * scales).astype(dtype)
    raise ValueError(f"W: root mean squares of rows from {used.min():.3g} to {used.max():.3g} do not fit float32")
