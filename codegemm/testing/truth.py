"""What a product must be, and how large it is where what is added up does not cancel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.transformed import TransformedWeight
from codegemm.formats.weight import Weight

Matrix = npt.NDArray[np.float64]


class Truth:
    """The product of x [n, K] with a weight on the CPU: y [n, M] in float64."""

    def __init__(self, x: npt.NDArray, weight: Weight) -> None:
        self.y = x.astype(np.float64) @ weight.dequantize(np.float64).T
        self._sizes = norms(self.y), uncancelled(x, weight)

    def norm(self, rows: slice = slice(None)) -> float:
        """Of these rows of y, or what it is on average over random signs of all that is added: a few products may
        cancel, their rounding errors don't."""
        return max(norm(sizes[rows]) for sizes in self._sizes)


def uncancelled(x: npt.NDArray, weight: Weight) -> Matrix:
    """[n]: the norm of each row of y over random signs of all products of a number in x and one in a centroid with its
    scale; of a rotated weight, in the basis in which they are added."""
    x = x.astype(np.float64)
    if weight.right is not None:
        x = weight.right.rotate(x)
    return np.sqrt(np.square(x) @ sum(np.square(matrix).sum(0) for matrix in summands(weight)))


def norms(rows: npt.NDArray) -> Matrix:
    """Of each row, in float64."""
    return np.sqrt(np.square(rows, dtype=np.float64).sum(-1))


def norm(array: npt.NDArray) -> float:
    """Of all its numbers. They are few: BLAS, which `numpy.linalg.norm` asks, would take longer to begin."""
    return float(norms(array.ravel()))


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
