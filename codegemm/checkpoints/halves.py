"""Scales and what they multiply as float16; where that doesn't reach, a power of two goes from one to the other.

A product stays what it is where one factor is multiplied by a power of two and the other divided by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codegemm.errors import CheckpointError

_ROUNDING = 2.0**-11  # how far off float16 is, relatively, as long as it is normal
_NORMAL = 2.0**-14
_TOP, _BOTTOM = 16, -25  # exponents: 2^16 is infinite, 2^-25 is zero

Halves = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Numbers:
    """Finite numbers to be held as float16.

    size: float64, by whose shape numbers count together; how far off they may be is told in terms of it.
    exact: whether they may not be off at all.
    """

    name: str
    values: npt.NDArray[np.float64]
    size: npt.NDArray[np.float64]
    exact: bool

    def held(self, exponent: int) -> tuple[Halves, npt.NDArray[np.bool_]]:
        """Times 2**exponent as float16, and whether each is near enough."""
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            half = np.ldexp(self.values, exponent).astype(np.float16)
            gap = abs(np.ldexp(half.astype(np.float64), -exponent) - self.values)
            fits = gap <= (0 if self.exact else _ROUNDING * self.size)
            if exponent:  # what float16 was not given as it is stays clear of subnormals, for kernels' sake
                fits &= (np.ldexp(self.size, exponent) >= _NORMAL) | (self.size == 0)
        return half, fits

    @property
    def exponent(self) -> int:
        """All are below two to it."""
        return int(np.frexp(abs(self.values).max(initial=0, where=np.isfinite(self.values)))[1])

    def misfit(self) -> str | None:
        """The first of them that float16 does not hold as it is."""
        wrong = np.argwhere(~self.held(0)[1])
        if not len(wrong):
            return None
        where = tuple(wrong[0].tolist())
        kind = "exactly a finite" if self.exact else "near a normal"
        return f"{self.name}: {self.values[where]:.8g} at {list(where)} is not {kind} float16"


def scales_of(array: npt.NDArray, *, exact: bool = False, name: str = "scales") -> Numbers:
    """Scales: each counts by itself."""
    values = array.astype(np.float64)
    return Numbers(name, values, abs(values), exact)


def vectors_of(name: str, array: npt.NDArray, *, exact: bool = False) -> Numbers:
    """Centroids [..., v]: the small numbers of one count as much as its largest."""
    values = array.astype(np.float64)
    return Numbers(name, values, abs(values).max(-1, keepdims=True), exact)


def halved(scales: Numbers, others: Sequence[Numbers]) -> tuple[Halves, list[Halves]]:
    """Scales times a power of two, and all that they multiply divided by it, as float16.

    One where that will do, else the nearest to it. CheckpointError, naming a number that float16 doesn't hold, where
    there is none.
    """
    top, other = scales.exponent, max(numbers.exponent for numbers in others)
    possible = range(max(other - _TOP, _BOTTOM - top), min(_TOP - top, other - _BOTTOM) + 1)
    for exponent in (0, *sorted(possible, key=abs)):
        first, fit = scales.held(exponent)
        if fit.all():
            rest = [numbers.held(-exponent) for numbers in others]
            if all(fit.all() for _, fit in rest):
                return first, [half for half, _ in rest]
    reason = next(filter(None, (numbers.misfit() for numbers in (scales, *others))))
    raise CheckpointError(f"{reason}, and no power of two between {scales.name} and {others[0].name} mends it")


def exact_half(name: str, array: npt.NDArray) -> Halves:
    """The same values in float16; CheckpointError, naming the first place, where one is not exactly the same."""
    numbers = scales_of(array, exact=True, name=name)
    reason = numbers.misfit()
    if reason:
        raise CheckpointError(reason)
    return numbers.held(0)[0]
