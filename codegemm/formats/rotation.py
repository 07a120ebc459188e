"""Randomised Hadamard rotations, behind another order of columns or not, which stand on either side of a weight's
core."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.formats.hadamard import transform, walsh_hadamard

MAX_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Rotation:
    """R = U^T diag(factors) P, U an orthogonal Hadamard transform of the whole length as in QuIP#, or of every `block`.

    factors: [length], NumPy's; signs or, after fine-tuning, any reals. block: a power of two up to 4096 that divides
    the length; None for the whole, which must have a Hadamard matrix (`hadamard.split_length`). order: P as the place
    in x that each number is taken from, int [length]; None for all in their own.
    """

    factors: npt.NDArray
    block: int | None = None
    order: npt.NDArray | None = None

    def rotate(self, x: npt.NDArray) -> npt.NDArray:
        """x R^T: R times every row of x [..., length], computed in its own dtype, float32 or float64.

        Of a dense matrix W [M, K] it makes, where factors are signs, the C whose product with R is W.
        """
        factors = self.factors.astype(x.dtype)
        if self.order is not None:
            x = x[..., self.order]
        if self.block is None:
            return transform(x * factors, transpose=True)
        y = np.multiply(x, factors, order="C").reshape(-1, self.block)
        y *= y.dtype.type(1 / np.sqrt(self.block))  # first: sums of large numbers stay in range
        walsh_hadamard(y)
        return y.reshape(x.shape)

    def unrotate(self, x: npt.NDArray) -> npt.NDArray:
        """x R for the rows of x [..., length]: the inverse of `rotate` where factors are signs."""
        if self.block is None:
            y = transform(x)
        else:
            y = np.multiply(x, x.dtype.type(1 / np.sqrt(self.block)), order="C").reshape(-1, self.block)
            walsh_hadamard(y)
            y = y.reshape(x.shape)
        y *= self.factors.astype(x.dtype)
        if self.order is None:
            return y
        placed = np.empty_like(y)
        placed[..., self.order] = y
        return placed


def default_block(length: int) -> int:
    """The block of a rotation unless told: the largest power of two that divides the length, at most 4096."""
    if length < 1:
        raise ValueError(f"in_features={length}: must be at least 1")
    return min(length & -length, MAX_BLOCK)


def check_block(block: Any, length: int) -> int:
    """`block` as a plain int; ValueError unless it is a power of two, at most 4096, that divides the length."""
    try:
        plain = operator.index(block)
    except TypeError:
        raise ValueError(f"block={block!r}: must be an integer") from None
    if not 1 <= plain <= MAX_BLOCK or plain & (plain - 1) or length % plain:
        raise ValueError(f"block={plain}: must be a power of two up to {MAX_BLOCK} that divides in_features={length}")
    return plain
