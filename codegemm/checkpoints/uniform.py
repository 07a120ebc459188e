"""Integers of 2, 3 or 4 bits with a scale and a zero point a group, exactly as codebook weights.

A code is several integers of a row side by side, and the centroids are the grid of all that they can be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.checkpoints.arguments import as_array, exact_half
from codegemm.errors import CheckpointError
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.extended import ExtendedWeight

BITS = (2, 3, 4)
_CODE_BITS = 8  # of a code at most: kernels have tables of 2^8 entries
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def from_uniform(integers: Any, scales: Any, zeros: Any, *, bits: int) -> CodebookWeight | ExtendedWeight:
    """W[r, k] = scales[r, k // g] * (integers[r, k] - zeros[r, k // g]), exactly.

    integers: of any integer dtype [M, K], 0 .. 2**bits - 1; bits is 2, 3 or 4.
    scales: float16 (or bfloat16, float32, float64 of values that float16 has) [M, K/g].
    zeros: integers or floats [M, K/g], or one number for all groups.

    Equal zero points become part of the codebook, others offsets of groups. Raises CheckpointError.
    """
    check_bits(bits)
    integers = as_array("integers", integers, _INTEGERS, 2)
    scales = as_array("scales", scales, _FLOATS, 2)
    rows, columns = integers.shape
    if not integers.size or len(scales) != rows or not scales.shape[1] or columns % scales.shape[1]:
        raise CheckpointError(
            f"scales: shape {scales.shape}, must be [{rows}, n] with n a divisor of the integers' {columns} columns"
        )
    if integers.min() < 0 or integers.max() >> bits:
        raise CheckpointError(
            f"integers: {integers.min()} to {integers.max()}, must be from 0 to {(1 << bits) - 1} for bits={bits}"
        )
    points = _zero_points(zeros, scales.shape)
    v = integers_per_code(bits, columns // scales.shape[1])
    centre, offsets = split_zeros(points)
    try:
        core = CodebookWeight(
            _join(integers.astype(np.uint8), bits, v),
            exact_half("zeros", grid(bits, v) - centre)[None],
            exact_half("scales", scales),
        )
        return core if offsets is None else ExtendedWeight(core, offsets=offsets)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def check_bits(bits: int) -> None:
    """CheckpointError unless integers of so many bits can be converted."""
    if bits not in BITS:
        raise CheckpointError(f"bits={bits!r}: must be one of {', '.join(map(str, BITS))}")


def integers_per_code(bits: int, group: int) -> int:
    """The most integers whose bits fit a code of 8 and that divide a group: 4 of 2 bits, 2 of 3 or 4 bits, or fewer."""
    return max(v for v in (1, 2, 4) if v * bits <= _CODE_BITS and group % v == 0)


def grid(bits: int, v: int) -> npt.NDArray[np.float64]:
    """[2**(v*bits), v]: the integers that each code stands for, the first in its lowest bits."""
    return (np.arange(1 << v * bits)[:, None] >> bits * np.arange(v) & (1 << bits) - 1).astype(np.float64)


def split_zeros(points: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float16] | None]:
    """Zero points [M, K/g] as the centre of the codebook and what is left of the groups, or None of it.

    The centre is near most of them: what products add for a group and what they subtract again stay small.
    """
    if (points == points.flat[0]).all():
        return float(points.flat[0]), None
    centre = float(np.round(np.median(points)))
    offsets = (centre - points).astype(np.float16)
    if (offsets.astype(np.float64) != centre - points).any():  # of fractions that only float16 around zero has
        centre, offsets = 0.0, exact_half("zeros", -points)
    return centre, offsets


def _zero_points(zeros: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    if np.ndim(zeros) == 0:
        points = np.full(shape, float(zeros))
    else:
        points = as_array("zeros", zeros, (*_INTEGERS, *_FLOATS), 2).astype(np.float64)
    if points.shape != shape:
        raise CheckpointError(f"zeros: shape {points.shape}, must be {shape} as the scales, or one number")
    if not np.isfinite(points).all():
        raise CheckpointError(f"zeros: {points[~np.isfinite(points)][0]}, must be finite")
    return points


def _join(integers: npt.NDArray[np.uint8], bits: int, v: int) -> npt.NDArray[np.uint8]:
    """Codes [M, K/v, 1]."""
    parts = integers.reshape(len(integers), -1, v)
    codes = parts[..., 0].copy()
    for i in range(1, v):
        codes |= parts[..., i] << np.uint8(bits * i)
    return codes[..., None]
