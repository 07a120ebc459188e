"""Binary-coded weights (as of LUT-GEMM, Park et al., 2022): sums of +-1 matrices with a scale a group each."""

from __future__ import annotations

from typing import Any

import numpy as np

from codegemm.checkpoints.arguments import FLOATS, as_array, refusing
from codegemm.checkpoints.groups import find_groups
from codegemm.checkpoints.halves import exact_half, halved, scales_of, vectors_of
from codegemm.errors import CheckpointError
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.codebook_config import MAX_SIGNS, all_signs
from codegemm.formats.transformed import TransformedWeight

_SIGNED = ("bool", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
_WORD = 32  # columns whose signs are a word of LUT-GEMM's


@refusing()
def from_binary(
    planes: Any, alphas: Any, offsets: Any = None, *, group_size: int | None = None
) -> CodebookWeight | TransformedWeight:
    """W[r, k] = sum over i of alphas[r, k // g, i] * planes[i, r, k] + offsets[r, k // g], exactly.

    planes: +-1, or bool with True for 1, [q, M, K].
    alphas: float16 (or wider, of values that float16 has, times one power of two for all) [M, ceil(K/g), q].
    offsets: float16 (or wider, of values that float16 has) [M, ceil(K/g)], or None.
    group_size: g, -1 for the whole row. None where K / groups is a power of two from 16 to 1024, or K. The last group
        may be short, as in `from_uniform`.

    All planes share the codebook of all signs; each is a term. Raises CheckpointError.
    """
    signs = as_array("planes", planes, _SIGNED, 3)
    alphas = as_array("alphas", alphas, (*FLOATS, "float64"), 3)
    count, rows, columns = signs.shape
    if not signs.size or alphas.shape[::2] != (rows, count):
        raise CheckpointError(f"alphas: shape {alphas.shape}, must be [{rows}, n, {count}] for planes {signs.shape}")
    groups = find_groups(columns, alphas.shape[1], group_size)
    if signs.dtype != bool and (abs(signs) != 1).any():
        raise CheckpointError(f"planes: {signs[abs(signs) != 1][0]}, must be 1 or -1")
    v = signs_per_code(groups.size)
    positive = (signs > 0).transpose(1, 0, 2).reshape(rows, -1, v)
    codes = np.packbits(positive, axis=2, bitorder="little")  # [M, vectors, 1]
    signs_held = vectors_of("planes", all_signs(v), exact=True)
    scales, (books,) = halved(scales_of(alphas, exact=True, name="alphas"), [signs_held])
    core = CodebookWeight(codes, books[None], groups.spread(scales).transpose(0, 2, 1).reshape(rows, -1))
    if offsets is None:
        return core if count == 1 else TransformedWeight(core, terms=count)
    added = exact_half("offsets", as_array("offsets", offsets, (*FLOATS, "float64"), 2))
    if added.shape != alphas.shape[:2]:
        raise CheckpointError(f"offsets: shape {added.shape}, must be {alphas.shape[:2]} as the alphas")
    return TransformedWeight(core, offsets=groups.spread(added), scaled=False, terms=count)


@refusing()
def from_lutgemm(bW: Any, alpha: Any, q_bias: Any = None) -> CodebookWeight | TransformedWeight:
    """The weight of a layer as LUT-GEMM (Park et al., 2022) stores it, exactly.

    bW: uint32 (or int32 of the same bits) [K/32, q, M]: bit k % 32 of word k // 32 says whether a sign is +1.
    alpha: float16 [groups, q, M], groups a divisor of K. q_bias: float16 [groups, M], or None.

    W[r, k] = sum over i of alpha[k // g, i, r] * sign(i, r, k) + q_bias[k // g, r], g = K / groups; the result is as
    `from_binary`'s. Raises CheckpointError.
    """
    words = as_array("bW", bW, ("uint32", "int32"), 3)
    alphas = as_array("alpha", alpha, ("float16",), 3)
    count, planes, rows = words.shape
    groups, columns = len(alphas), _WORD * count
    if not words.size or alphas.shape[1:] != (planes, rows):
        raise CheckpointError(f"alpha: shape {alphas.shape}, must be [n, {planes}, {rows}] for bW {words.shape}")
    if not groups or columns % groups:
        raise CheckpointError(f"alpha: {groups} groups, must divide the {columns} columns of bW {words.shape}")
    bias = None if q_bias is None else as_array("q_bias", q_bias, ("float16",), 2)
    if bias is not None and bias.shape != (groups, rows):
        raise CheckpointError(f"q_bias: shape {bias.shape}, must be ({groups}, {rows}) as alpha's")
    bytes_of = words.transpose(1, 2, 0).astype("<u4", order="C").view(np.uint8)
    signs = np.unpackbits(bytes_of, axis=2, bitorder="little").astype(bool)
    added = None if bias is None else bias.T
    return from_binary(signs, alphas.transpose(2, 0, 1), added, group_size=columns // groups)


def signs_per_code(group: int) -> int:
    """The most signs of a code, up to 8, that divide a group."""
    return max(v for v in range(1, MAX_SIGNS + 1) if group % v == 0)
