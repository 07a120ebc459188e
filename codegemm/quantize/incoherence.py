"""What QuIP#'s and QTIP's quantisers share: rows made one size, and a randomised Hadamard rotation on either side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codegemm.formats.rotation import Rotation
from codegemm.quantize.scaling import root_mean_squares
from codegemm.quantize.search import Vectors


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


def held(signs: npt.NDArray[np.float32], scales: npt.NDArray[np.float64], *dtypes: type[np.floating]) -> npt.NDArray:
    """Signs times scales, in the first of the dtypes where it loses no bits to underflow or overflow."""
    used = scales[scales > 0]
    for dtype in dtypes:
        if len(used) == 0 or np.finfo(dtype).tiny <= used.min() <= used.max() <= np.finfo(dtype).max / 2:
            return (signs * scales).astype(dtype)
    raise ValueError(f"W: root mean squares of rows from {used.min():.3g} to {used.max():.3g} do not fit float32")
