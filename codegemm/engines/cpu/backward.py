"""g @ W on the CPU, the gradient of x @ W^T: slices of W, rebuilt, by NumPy's BLAS."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from codegemm.engines.cpu import dequant
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.transformed import TransformedWeight
from codegemm.formats.weight import Weight


def multiply(weight: Weight, g: npt.NDArray) -> npt.NDArray:
    """g [n, M] times W [M, K]: [n, K] in float64 for float64 g, else in float32."""
    left, right = weight.left, weight.right
    with np.errstate(over="ignore", invalid="ignore"):
        g = g.astype(np.float64 if g.dtype == np.float64 else np.float32)
        if left is not None:
            g = left.rotate(g)
        total = _around_core(weight, g) if isinstance(weight, TransformedWeight) else _by_slices(weight, g)
        return total if right is None else right.unrotate(total)


def _around_core(weight: TransformedWeight, g: npt.NDArray) -> npt.NDArray:
    """g times a core's terms, added up, and times the offsets of groups."""
    spec, n = weight.spec, len(g)
    total = multiply(weight.core, g).reshape(n, spec.terms, spec.in_features).sum(1)
    if spec.offsets:
        total.reshape(n, spec.groups, spec.in_features // spec.groups)[...] += (g @ weight.addends(g.dtype))[..., None]
    return total


def _by_slices(weight: Weight, g: npt.NDArray) -> npt.NDArray:
    """g times what is between the weight's rotations."""
    total = np.zeros((len(g), weight.shape[1]), g.dtype)
    for start, rows in _slices(weight, g.dtype):
        total += g[:, start : start + len(rows)] @ rows
    return total


def _slices(weight: Weight, dtype: np.dtype) -> Iterator[tuple[int, npt.NDArray]]:
    if isinstance(weight, CodebookWeight) and dtype == np.float32 and dequant.decoder() is not None:
        room = np.empty((dequant.SLICE_ROWS, weight.shape[1]), np.float32)
        return dequant.dense_slices(dequant.prepare(weight), room)
    return weight.core_blocks(dtype)
