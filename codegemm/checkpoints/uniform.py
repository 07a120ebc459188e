"""Integers of 2, 3 or 4 bits with a scale and a zero point a group, exactly as codebook weights: as they are, and in
the packed layouts of GPTQ (Frantar et al., 2022; AutoGPTQ, GPTQModel) and AWQ (Lin et al., 2023; AutoAWQ).

A code is several integers of a row side by side, and the centroids are the grid of all that they can be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.checkpoints.arguments import FLOATS, as_array, exact_half, refusing
from codegemm.errors import CheckpointError
from codegemm.formats.bits import unpack
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.transformed import TransformedWeight

BITS = (2, 3, 4)
_CODE_BITS = 8  # of a code at most: kernels have tables of 2^8 entries
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")
_WORDS = ("int32", "uint32")
_VERSIONS = (1, 2)
_AWQ_BITS = 4
_AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # of 8 neighbours, which one each nibble of a word has


@refusing()
def from_uniform(integers: Any, scales: Any, zeros: Any, *, bits: int) -> CodebookWeight | TransformedWeight:
    """W[r, k] = scales[r, k // g] * (integers[r, k] - zeros[r, k // g]), exactly.

    integers: of any integer dtype [M, K], 0 .. 2**bits - 1; bits is 2, 3 or 4.
    scales: float16 (or bfloat16, float32, float64 of values that float16 has) [M, K/g].
    zeros: integers or floats [M, K/g], or one number for all groups.

    Equal zero points become part of the codebook, others offsets of groups. Raises CheckpointError.
    """
    _check_bits(bits)
    integers = as_array("integers", integers, _INTEGERS, 2)
    scales = as_array("scales", scales, (*FLOATS, "float64"), 2)
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
    parts = integers.astype(np.uint8).reshape(rows, -1, v)
    core = CodebookWeight(
        np.bitwise_or.reduce(parts << np.uint8(bits) * np.arange(v, dtype=np.uint8), axis=2, keepdims=True),
        exact_half("zeros", grid(bits, v) - centre)[None],
        exact_half("scales", scales),
    )
    return core if offsets is None else TransformedWeight(core, offsets=offsets)


def from_gptq(
    qweight: Any, qzeros: Any, scales: Any, g_idx: Any = None, *, bits: int, version: int = 1
) -> CodebookWeight | TransformedWeight:
    """The weight of a GPTQ layer, exactly.

    qweight: int32 [K*bits/32, M], the integers of a column one after the other, lowest bits first (of 3 bits 32 in
        three words). bits is 2, 3 or 4.
    qzeros: int32 [K/g, M*bits/32], zero points packed the same way along a row.
    scales: float16 (or bfloat16, float32 of values that float16 has) [K/g, M].
    g_idx: int32 [K], the group of each column of W; None for groups that follow each other, as it must say.
    version: of the checkpoint's format. 1 (`gptq`) stores zero points less one, so that a stored 2**bits - 1 means
        2**bits; 2 (`gptq_v2`) stores them as they are.

    A layer quantised in the order of activations (`desc_act`) has groups of columns that don't follow each other, which
    no kernel here multiplies by. Raises CheckpointError.
    """
    _check_bits(bits)
    if version not in _VERSIONS:
        raise CheckpointError(f"version={version!r}: must be one of {', '.join(map(str, _VERSIONS))}")
    words = as_array("qweight", qweight, _WORDS, 2)
    scales = as_array("scales", scales, FLOATS, 2)
    packed_zeros = as_array("qzeros", qzeros, _WORDS, 2)
    rows, (groups, outputs) = words.shape[0], scales.shape
    if words.shape[1] != outputs:
        raise CheckpointError(f"qweight: shape {words.shape}, must be [K*{bits}/32, {outputs}] for scales of that many")
    if 32 * rows % bits:
        raise CheckpointError(f"qweight: shape {words.shape}, its first must be a multiple of {bits} for bits={bits}")
    expected = (groups, -(-outputs * bits // 32))
    if packed_zeros.shape != expected:
        raise CheckpointError(f"qzeros: shape {packed_zeros.shape}, must be {expected} for bits={bits}")
    integers = _unpack(np.ascontiguousarray(words.T), bits)
    _check_order(g_idx, integers.shape[1], groups)
    zeros = _unpack(packed_zeros, bits)[:, :outputs].astype(np.int32) + (version == 1)
    return from_uniform(integers, scales.T, zeros.T, bits=bits)


def from_awq(qweight: Any, qzeros: Any, scales: Any) -> CodebookWeight | TransformedWeight:
    """The weight of an AWQ layer (`gemm`, 4 bit), exactly.

    qweight: int32 [K, M/8]: eight rows of W in a word, in the order 0, 2, 4, 6, 1, 3, 5, 7 from its lowest bits.
    qzeros: int32 [K/g, M/8], zero points in the same order.
    scales: float16 (or bfloat16, float32 of values that float16 has) [K/g, M].

    Raises CheckpointError.
    """
    words = as_array("qweight", qweight, _WORDS, 2)
    packed_zeros = as_array("qzeros", qzeros, _WORDS, 2)
    scales = as_array("scales", scales, FLOATS, 2)
    groups, outputs = scales.shape
    for name, array, first in (("qweight", words, len(words)), ("qzeros", packed_zeros, groups)):
        if array.shape != (first, outputs // 8) or outputs % 8:
            raise CheckpointError(f"{name}: shape {array.shape}, must be [{first}, M/8] for scales of M={outputs}")
    return from_uniform(_unpack_awq(words).T, scales.T, _unpack_awq(packed_zeros).T, bits=_AWQ_BITS)


def _check_bits(bits: int) -> None:
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
        points = as_array("zeros", zeros, (*_INTEGERS, *FLOATS, "float64"), 2).astype(np.float64)
    if points.shape != shape:
        raise CheckpointError(f"zeros: shape {points.shape}, must be {shape} as the scales, or one number")
    if not np.isfinite(points).all():
        raise CheckpointError(f"zeros: {points[~np.isfinite(points)][0]}, must be finite")
    return points


def _unpack(words: npt.NDArray, bits: int) -> npt.NDArray[np.uint8]:
    """Integers uint8 [rows, n] of words [rows, ceil(n*bits/32)], lowest bits first; those of a whole row's bits."""
    as_bytes = np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8)
    return unpack(as_bytes, 8 * as_bytes.shape[1] // bits, bits)


def _unpack_awq(words: npt.NDArray) -> npt.NDArray[np.uint8]:
    """[rows, 8 n] of words [rows, n]."""
    nibbles = _unpack(words, _AWQ_BITS).reshape(len(words), -1, 8)
    return nibbles[..., np.argsort(_AWQ_ORDER)].reshape(len(words), -1)


def _check_order(g_idx: Any, columns: int, groups: int) -> None:
    """CheckpointError unless groups follow each other."""
    if not groups or columns % groups:
        raise CheckpointError(f"scales: {groups} groups, must divide the {columns} columns of W")
    if g_idx is None:
        return
    index = as_array("g_idx", g_idx, ("int32", "int64"), 1)
    if index.shape != (columns,):
        raise CheckpointError(f"g_idx: shape {index.shape}, must be ({columns},)")
    wrong = np.flatnonzero(index != np.arange(columns) // (columns // groups))
    if len(wrong):
        raise CheckpointError(
            f"g_idx: column {wrong[0]} is of group {index[wrong[0]]}: the groups of a layer quantised in the order of "
            "activations (desc_act) don't follow each other, and kernels take only such as do"
        )
