"""Integers of 2, 3 or 4 bits with a scale and a zero point a group, exactly as codebook weights.

A code is several integers of a row side by side, and the centroids are the grid of all that they can be.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.checkpoints.arguments import FLOATS, as_array, number, refusing
from codegemm.checkpoints.groups import Groups, find_groups
from codegemm.checkpoints.halves import Numbers, halved, scales_of, vectors_of
from codegemm.errors import CheckpointError
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.transformed import TransformedWeight

BITS = (2, 3, 4)
_CODE_BITS = 8  # of a code at most: kernels have tables of 2^8 entries
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")


@refusing()
def from_uniform(
    integers: Any, scales: Any, zeros: Any, *, bits: int, group_size: int | None = None, g_idx: Any = None
) -> CodebookWeight | TransformedWeight:
    """W[r, k] = scales[r, i] * (integers[r, k] - zeros[r, i]) with i = k // g or g_idx[k], exactly.

    integers: of any integer dtype [M, K], 0 .. 2**bits - 1; bits is 2, 3 or 4.
    scales: float16 (or bfloat16, float32, float64 of values that float16 has, times one power of two for all)
        [M, ceil(K/g)].
    zeros: integers or floats [M, ceil(K/g)], or one number for all groups.
    group_size: g, -1 for the whole row. None where K / groups is a power of two from 16 to 1024, or K, or with g_idx.
    g_idx: int32 or int64 [K], the group of each column, of which columns in any order may be; as in `from_gptq`.

    Equal zero points become part of the codebook, others offsets of groups. Where g does not divide K the last group is
    short; then scales and offsets are stored for groups of gcd(g, K), each as often as it takes, and `bits_per_weight`
    counts them all: for K=960 and g=128 those of 64. Raises CheckpointError.
    """
    bits = checked_bits(bits)
    integers = as_array("integers", integers, _INTEGERS, 2)
    scales = as_array("scales", scales, (*FLOATS, "float64"), 2)
    rows, columns = integers.shape
    if not integers.size or len(scales) != rows:
        raise CheckpointError(f"scales: shape {scales.shape}, must be [{rows}, n] for integers {integers.shape}")
    if integers.min() < 0 or integers.max() >> bits:
        raise CheckpointError(
            f"integers: {integers.min()} to {integers.max()}, must be from 0 to {(1 << bits) - 1} for bits={bits}"
        )
    groups = find_groups(columns, scales.shape[1], group_size, g_idx)
    return of_groups(integers, scales, _zero_points(zeros, scales.shape), groups, bits)


def of_groups(
    integers: npt.NDArray, scales: npt.NDArray, points: npt.NDArray[np.float64], groups: Groups, bits: int
) -> CodebookWeight | TransformedWeight:
    """The weight of integers [M, K] with scales and zero points [M, groups] of the checkpoint's groups."""
    v = integers_per_code(bits, groups.size)
    centre, offsets = split_zeros(points)
    multiplied = [vectors_of("zeros", grid(bits, v) - centre, exact=True)]
    if offsets is not None:
        multiplied.append(Numbers("zeros", offsets, abs(offsets).max(keepdims=True), exact=True))
    half_scales, (centroids, *half_offsets) = halved(scales_of(scales, exact=True), multiplied)
    columns = integers if groups.order is None else integers[:, groups.order]
    parts = columns.astype(np.uint8).reshape(len(integers), -1, v)
    core = CodebookWeight(
        np.bitwise_or.reduce(parts << np.uint8(bits) * np.arange(v, dtype=np.uint8), axis=2, keepdims=True),
        centroids[None],
        groups.spread(half_scales),
    )
    if not half_offsets and groups.order is None:
        return core
    return TransformedWeight(core, offsets=groups.spread(half_offsets[0]) if half_offsets else None, order=groups.order)


def checked_bits(bits: Any) -> int:
    """A plain int, whatever NumPy would make of its type; CheckpointError unless integers of so many bits can be
    converted."""
    if not isinstance(bits, Integral) or bits not in BITS:
        raise CheckpointError(f"bits={bits!r}: must be one of {', '.join(map(str, BITS))}")
    return int(bits)


def integers_per_code(bits: int, group: int) -> int:
    """The most integers whose bits fit a code of 8 and that divide a group: 4 of 2 bits, 2 of 3 or 4 bits, or fewer."""
    return max(v for v in (1, 2, 4) if v * bits <= _CODE_BITS and group % v == 0)


def grid(bits: int, v: int) -> npt.NDArray[np.float64]:
    """[2**(v*bits), v]: the integers that each code stands for, the first in its lowest bits."""
    return (np.arange(1 << v * bits)[:, None] >> bits * np.arange(v) & (1 << bits) - 1).astype(np.float64)


def split_zeros(points: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64] | None]:
    """Zero points [M, K/g] as the centre of the codebook and what is left of the groups, or None of it.

    The centre is near most of them: what products add for a group and what they subtract again stay small.
    """
    if (points == points.flat[0]).all():
        return float(points.flat[0]), None
    centre = float(np.round(np.median(points)))
    offsets = centre - points
    with np.errstate(over="ignore"):
        moved = offsets.astype(np.float16) != offsets
    return (0.0, -points) if moved.any() else (centre, offsets)  # fractions that only float16 around zero has


def _zero_points(zeros: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    if zeros is None or np.ndim(zeros) == 0:
        points = np.full(shape, number("zeros", zeros))
    else:
        points = as_array("zeros", zeros, (*_INTEGERS, *FLOATS, "float64"), 2).astype(np.float64)
    if points.shape != shape:
        raise CheckpointError(f"zeros: shape {points.shape}, must be {shape} as the scales, or one number")
    if not np.isfinite(points).all():
        raise CheckpointError(f"zeros: {points[~np.isfinite(points)][0]}, must be finite")
    return points
