"""Integers of 2, 3 or 4 bits in words of 32: the layouts of GPTQ (Frantar et al., 2022; AutoGPTQ, GPTQModel) and AWQ
(Lin et al., 2023; AutoAWQ)."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.checkpoints.arguments import FLOATS, as_array, refusing
from codegemm.checkpoints.groups import find_groups
from codegemm.checkpoints.uniform import checked_bits, of_groups
from codegemm.errors import CheckpointError
from codegemm.formats.bits import unpack
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.transformed import TransformedWeight

_WORDS = ("int32", "uint32")
_VERSIONS = (1, 2)
_WRITERS = (None, "gptqmodel")
# What version 1 subtracts from words of zero points: a one for each. 32 of 3 bits lie in three words, in which they
# begin from bits 0, 1 and 2 on; GPTQModel exchanges the first word's ones with the third's.
_ONES = {2: (0x55555555,), 4: (0x11111111,)}
_GPTQMODEL_ONES = (0x24924924, 0x92492492, 0x49249249)
_AWQ_BITS = 4
_AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # of 8 neighbours, which one each nibble of a word has


@refusing()
def from_gptq(
    qweight: Any,
    qzeros: Any,
    scales: Any,
    g_idx: Any = None,
    *,
    bits: int,
    version: int = 1,
    group_size: int | None = None,
    writer: str | None = None,
) -> CodebookWeight | TransformedWeight:
    """The weight of a GPTQ layer, exactly.

    qweight: int32 [K*bits/32, M], the integers of a column one after the other, lowest bits first (of 3 bits 32 in
        three words). bits is 2, 3 or 4.
    qzeros: int32 [ceil(K/g), M*bits/32], zero points 0 .. 2**bits - 1, packed the same way along a row.
    scales: float16 (or bfloat16, float32 of values that float16 has, times one power of two for all) [ceil(K/g), M].
    g_idx: int32 [K], the group of each column of W; None for groups that follow each other.
    version: of the checkpoint's format. 1 (`gptq`) stores zero points less one, 2 (`gptq_v2`) as they are.
    group_size: g, -1 for the whole row. With neither it nor g_idx, K / groups must be a power of two from 16 to 1024,
        or K. The last group may be short, as in `from_uniform`.
    writer: `gptqmodel` for a layer of 3 bits and version 1 that GPTQModel wrote; says nothing of others.

    Of 2 and 4 bits version 1 subtracts a one for each zero point from the whole word, so that a 0 borrows from those
    above it, and they are added to the whole word again. Of 3 bits each zero point is stored by itself, modulo 8; but
    GPTQModel subtracts from whole words there, too, in the first and the third of three the other's ones.

    Warns where most likely something is wrong that no reader can tell for sure: by another version or writer all zero
    points would be 2**(bits-1), as those of symmetric integers are; or after each zero point of 0 a word has nothing
    but ones, which some writers leave there, and the zero points above it are lost.

    A layer quantised in the order of activations (`desc_act`) has groups of columns that don't follow each other, as
    g_idx says. Then the weight has its columns sorted by group, and an `order` by which products take x. All groups
    must be of one size, but for a shorter last one. Raises CheckpointError.
    """
    bits = checked_bits(bits)
    if version not in _VERSIONS:
        raise CheckpointError(f"version={version!r}: must be one of {', '.join(map(str, _VERSIONS))}")
    if writer not in _WRITERS:
        raise CheckpointError(f"writer={writer!r}: must be one of {', '.join(map(repr, _WRITERS))}")
    words = as_array("qweight", qweight, _WORDS, 2)
    scales = as_array("scales", scales, FLOATS, 2)
    packed_zeros = as_array("qzeros", qzeros, _WORDS, 2)
    rows, (groups, outputs) = words.shape[0], scales.shape
    if not words.size or words.shape[1] != outputs:
        raise CheckpointError(f"qweight: shape {words.shape}, must be [K*{bits}/32, {outputs}] for scales of that many")
    if 32 * rows % bits:
        raise CheckpointError(f"qweight: shape {words.shape}, its first must be a multiple of {bits} for bits={bits}")
    expected = (groups, -(-outputs * bits // 32))
    if packed_zeros.shape != expected:
        raise CheckpointError(f"qzeros: shape {packed_zeros.shape}, must be {expected} for bits={bits}")
    integers = _unpack(np.ascontiguousarray(words.T), bits)
    found = find_groups(integers.shape[1], groups, group_size, g_idx)
    zeros = _zeros(packed_zeros.astype(np.uint32), outputs, bits, version, writer)
    return of_groups(integers, scales.T, zeros.T.astype(np.float64), found, bits)


@refusing()
def from_awq(
    qweight: Any, qzeros: Any, scales: Any, *, group_size: int | None = None
) -> CodebookWeight | TransformedWeight:
    """The weight of an AWQ layer (`gemm`, 4 bit), exactly.

    qweight: int32 [K, M/8]: eight rows of W in a word, in the order 0, 2, 4, 6, 1, 3, 5, 7 from its lowest bits.
    qzeros: int32 [ceil(K/g), M/8], zero points in the same order.
    scales: float16 (or bfloat16, float32 of values that float16 has, times one power of two for all) [ceil(K/g), M].
    group_size: g, -1 for the whole row. None where K / groups is a power of two from 16 to 1024, or K. The last group
        may be short, as in `from_uniform`.

    Raises CheckpointError.
    """
    words = as_array("qweight", qweight, _WORDS, 2)
    packed_zeros = as_array("qzeros", qzeros, _WORDS, 2)
    scales = as_array("scales", scales, FLOATS, 2)
    groups, outputs = scales.shape
    for name, array, first in (("qweight", words, len(words)), ("qzeros", packed_zeros, groups)):
        if not array.size or array.shape != (first, outputs // 8) or outputs % 8:
            raise CheckpointError(f"{name}: shape {array.shape}, must be [{first}, M/8] for scales of M={outputs}")
    found = find_groups(len(words), groups, group_size)
    zeros = _unpack_awq(packed_zeros).T.astype(np.float64)
    return of_groups(_unpack_awq(words).T, scales.T, zeros, found, _AWQ_BITS)


def _zeros(
    words: npt.NDArray[np.uint32], count: int, bits: int, version: int, writer: str | None
) -> npt.NDArray[np.uint8]:
    """Zero points [groups, count] of words uint32 [groups, ceil(count*bits/32)]; warns where they look wrong."""
    zeros, middle = _read_zeros(words, count, bits, version, writer), 1 << bits - 1
    others = itertools.product(_VERSIONS, _WRITERS) if (zeros != middle).any() else ()
    meant = next((other for other in others if (_read_zeros(words, count, bits, *other) == middle).all()), None)
    if meant is not None:
        warnings.warn(
            f"qzeros: {zeros.min()} to {zeros.max()} by version={version}, writer={writer!r}, but all {middle}, as of "
            f"symmetric integers, by version={meant[0]}, writer={meant[1]!r}: most likely it is version={meant[0]}"
            + (f" of {meant[1]}" if meant[1] else ""),
            stacklevel=4,
        )
    if version == 1 and writer is None and _ones_to_the_end(words, count, bits):
        warnings.warn(
            "qzeros: nothing but ones above each zero point of 0 in its word, most likely its writer left them there: "
            "the zero points above it are lost",
            stacklevel=4,
        )
    return zeros


def _read_zeros(
    words: npt.NDArray[np.uint32], count: int, bits: int, version: int, writer: str | None
) -> npt.NDArray[np.uint8]:
    """Zero points [groups, count], by the rules of a version and a writer."""
    if version == 1 and bits == 3 and writer is None:
        return (_unpack(words, bits)[:, :count] + np.uint8(1)) & np.uint8(7)
    if version == 1:
        words = words + np.resize(np.array(_ONES.get(bits, _GPTQMODEL_ONES), np.uint32), words.shape[1])
    return _unpack(words, bits)[:, :count]


def _ones_to_the_end(words: npt.NDArray[np.uint32], count: int, bits: int) -> bool:
    """Whether each 2**bits - 1 has nothing but ones above it in its word, up to the last number there, and one has room
    for a number above it."""
    starts = bits * np.arange(count)
    starts = starts[starts % 32 + bits <= 32]
    word, shift = np.divmod(starts, 32)
    room = np.minimum(32 - shift, bits * count - starts)
    ones = (np.uint64(1) << room.astype(np.uint64)) - np.uint64(1)
    above = words[:, word].astype(np.uint64) >> shift.astype(np.uint64) & ones
    largest = np.uint64((1 << bits) - 1)
    full = above & largest == largest
    return bool(full[:, room >= 2 * bits].any() and (above == ones)[full].all())


def _unpack(words: npt.NDArray, bits: int) -> npt.NDArray[np.uint8]:
    """Integers uint8 [rows, n] of words [rows, ceil(n*bits/32)], lowest bits first; those of a whole row's bits."""
    as_bytes = np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8)
    return unpack(as_bytes, 8 * as_bytes.shape[1] // bits, bits)


def _unpack_awq(words: npt.NDArray) -> npt.NDArray[np.uint8]:
    """[rows, 8 n] of words [rows, n]."""
    nibbles = _unpack(words, _AWQ_BITS).reshape(len(words), -1, 8)
    return nibbles[..., np.argsort(_AWQ_ORDER)].reshape(len(words), -1)
