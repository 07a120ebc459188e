"""The packed layouts of GPTQ (Frantar et al., 2022; AutoGPTQ, GPTQModel) and AWQ (Lin et al., 2023; AutoAWQ)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.checkpoints.arguments import as_array
from codegemm.checkpoints.uniform import check_bits, from_uniform
from codegemm.errors import CheckpointError
from codegemm.formats.bits import unpack
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.extended import ExtendedWeight

_WORDS = ("int32", "uint32")
_FLOATS = ("float16", "bfloat16", "float32")
_VERSIONS = (1, 2)
_AWQ_BITS = 4
_AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # of 8 neighbours, which one each nibble of a word has


def from_gptq(
    qweight: Any, qzeros: Any, scales: Any, g_idx: Any = None, *, bits: int, version: int = 1
) -> CodebookWeight | ExtendedWeight:
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
    check_bits(bits)
    if version not in _VERSIONS:
        raise CheckpointError(f"version={version!r}: must be one of {', '.join(map(str, _VERSIONS))}")
    words = as_array("qweight", qweight, _WORDS, 2)
    scales = as_array("scales", scales, _FLOATS, 2)
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


def from_awq(qweight: Any, qzeros: Any, scales: Any) -> CodebookWeight | ExtendedWeight:
    """The weight of an AWQ layer (`gemm`, 4 bit), exactly.

    qweight: int32 [K, M/8]: eight rows of W in a word, in the order 0, 2, 4, 6, 1, 3, 5, 7 from its lowest bits.
    qzeros: int32 [K/g, M/8], zero points in the same order.
    scales: float16 (or bfloat16, float32 of values that float16 has) [K/g, M].

    Raises CheckpointError.
    """
    words = as_array("qweight", qweight, _WORDS, 2)
    packed_zeros = as_array("qzeros", qzeros, _WORDS, 2)
    scales = as_array("scales", scales, _FLOATS, 2)
    groups, outputs = scales.shape
    for name, array, first in (("qweight", words, len(words)), ("qzeros", packed_zeros, groups)):
        if array.shape != (first, outputs // 8) or outputs % 8:
            raise CheckpointError(f"{name}: shape {array.shape}, must be [{first}, M/8] for scales of M={outputs}")
    return from_uniform(_unpack_awq(words).T, scales.T, _unpack_awq(packed_zeros).T, bits=_AWQ_BITS)


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
