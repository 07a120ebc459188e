"""What a product must be, and how large it is where what is added up does not cancel."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.transformed import TransformedWeight
from codegemm.formats.weight import Weight

Matrix = npt.NDArray[np.float64]


class Truth:
    """The products of x [n, K] with a weight on the CPU: y [n, M] in float64."""

    def __init__(self, y: Matrix, uncancelled: Matrix) -> None:
        self.y = y
        self._squares = np.square(y).sum(1), np.square(uncancelled)  # [n]

    def norm(self, rows: slice) -> float:
        """Of some rows of y, or what it is on average over random signs of all that is added: a few products may
        cancel, their rounding errors don't."""
        return math.sqrt(max(float(squares[rows].sum()) for squares in self._squares))


def truths(weight: Weight, xs: Mapping[str, npt.NDArray]) -> dict[str, Truth]:
    """Of the same x in several dtypes, by their names."""
    dense = weight.dequantize(np.float64).T
    sizes = uncancelled(weight, next(iter(xs.values())))
    return {name: Truth(x.astype(np.float64) @ dense, sizes) for name, x in xs.items()}


def uncancelled(weight: Weight, x: npt.NDArray) -> Matrix:
    """[n]: the norm of each row of y over random signs of all products of a number in x and one in a centroid with its
    scale; of a rotated weight, in the basis in which they are added."""
    x = x.astype(np.float64)
    if weight.right is not None:
        x = weight.right.rotate(x)
    return np.sqrt(np.square(x) @ sum(np.square(matrix).sum(0) for matrix in summands(weight)))


def norm(array: npt.NDArray) -> float:
    """Of all its numbers, in float64; for such small arrays BLAS, which `numpy.linalg.norm` asks, is no help."""
    return math.sqrt(float(np.square(array, dtype=np.float64).sum()))


def uncancelled_norm(x: npt.NDArray, *matrices: npt.NDArray) -> float:
    """Of x @ sum(matrices).T, in float64, as it is on average over random signs of what is added."""
    x = x.astype(np.float64)
    return math.sqrt(sum(float(np.sum(x**2 @ (matrix**2).T)) for matrix in matrices))


def summands(weight: Weight) -> list[Matrix]:
    """Dense matrices that add up to what is between a weight's rotations."""
    if isinstance(weight, CodebookWeight):
        return by_codebook(weight)
    if not isinstance(weight, TransformedWeight):
        return [np.concatenate([rows for _, rows in weight.core_blocks(np.dtype(np.float64))])]
    core, (rows, columns) = weight.core, weight.shape
    parts = [core.dequantize(np.float64)] if core.right is not None else summands(core)
    terms = [term for part in parts for term in part.reshape(rows, -1, columns).swapaxes(0, 1)]
    if weight.offsets is not None:
        terms.append(np.repeat(weight.addends(np.float64), columns // weight.spec.groups, axis=1))
    return terms


def by_codebook(weight: CodebookWeight) -> list[Matrix]:
    """Of each of a weight's codebooks the dense matrix; the weight is their sum."""
    parts = weight.spec.part_rows if weight.codebooks.ndim == 4 else None
    return [
        CodebookWeight(weight.codes[..., [c]], weight.codebooks[..., [c], :, :], weight.scales, parts).dequantize(
            np.float64
        )
        for c in range(weight.config.m)
    ]
