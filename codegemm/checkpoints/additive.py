"""Additive codebooks: AQLM's layout (Egiazarian et al., 2024), and that of CodeGEMM's published checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.checkpoints.arguments import FLOATS, as_array, as_codes, refusing
from codegemm.checkpoints.groups import find_groups
from codegemm.checkpoints.halves import halved, scales_of, vectors_of
from codegemm.errors import CheckpointError
from codegemm.formats.codebook import CodebookWeight


@refusing()
def from_aqlm(codes: Any, codebooks: Any, scales: Any) -> CodebookWeight:
    """The weight of an AQLM layer.

    codes: int8 or int16 [M, K/v, m], unsigned values stored wrapped: -2**(b-1) .. 2**b - 1.
    codebooks: float16 (or bfloat16, float32) [m, 2**b, 1, v].
    scales: the same dtypes [M, 1, 1, 1].

    What is not of float16 is rounded to it: scales by at most 2**-11 of themselves, centroids of the largest number in
    each. Where they are too small or too large for that, a power of two moves between codebooks and scales; where none
    will do, they are refused.

    Layers with an out_group_size above 1 are refused: one of their codes spans several rows, which no kernel here
    multiplies by. Raises CheckpointError.
    """
    codes = as_array("codes", codes, ("int8", "uint8", "int16", "uint16"), 3)
    codebooks = as_array("codebooks", codebooks, FLOATS, 4)
    scales = as_array("scales", scales, FLOATS, 4)
    if codebooks.shape[2] != 1:
        raise CheckpointError(
            f"codebooks: out_group_size {codebooks.shape[2]}, must be 1: the kernels take codes of one row each"
        )
    b = _code_bits(codebooks)
    if 8 * codes.dtype.itemsize < b:
        raise CheckpointError(f"codes: dtype {codes.dtype}, too narrow for {b}-bit codes")
    if scales.shape[1:] != (1, 1, 1):
        raise CheckpointError(f"scales: shape {scales.shape}, must be [{codes.shape[0]}, 1, 1, 1]")
    return _weight(as_codes(codes, b), codebooks[:, :, 0], scales.reshape(-1, 1))


@refusing()
def from_codegemm(codes: Any, codebooks: Any, scales: Any, *, group_size: int | None = None) -> CodebookWeight:
    """The weight of a published CodeGEMM layer.

    codes: int32 [m, K/(4v), M]: byte j, least significant first, of word w is the code of k-vector 4w + j.
    codebooks: float16 (or bfloat16, float32) [m, 256, v].
    scales: the same dtypes [K/g, M]; rounded as those of `from_aqlm`.
    group_size: g, -1 for the whole row; the last group may be short. None where K / groups is a power of two from 16 to
        1024, or K.

    Raises CheckpointError.
    """
    words = as_array("codes", codes, ("int32", "uint32"), 3)
    codebooks = as_array("codebooks", codebooks, FLOATS, 3)
    scales = as_array("scales", scales, FLOATS, 2)
    for name, array in (("codes", words), ("codebooks", codebooks), ("scales", scales)):
        if not array.size:
            raise CheckpointError(f"{name}: shape {array.shape}, must not be empty")
    if _code_bits(codebooks) != 8:
        raise CheckpointError(f"codebooks: shape {codebooks.shape}, must be [m, 256, v]")
    m, groups_of_four, rows = words.shape
    as_bytes = np.ascontiguousarray(words.astype("<i4")).view(np.uint8).reshape(m, groups_of_four, rows, 4)
    by_row = as_bytes.transpose(2, 1, 3, 0).reshape(rows, 4 * groups_of_four, m)
    v = codebooks.shape[2]
    groups = find_groups(by_row.shape[1] * v, len(scales), group_size)
    if groups.size % v:
        raise CheckpointError(f"scales: groups of {groups.size} columns, must be of a multiple of v={v}")
    return _weight(by_row, codebooks, groups.spread(scales.T))


def _weight(codes: npt.NDArray, codebooks: npt.NDArray, scales: npt.NDArray) -> CodebookWeight:
    """Of codes [M, K/v, m], codebooks [m, 2**b, v] and scales [M, K/g], these of any float dtype."""
    half_scales, (half_codebooks,) = halved(scales_of(scales), [vectors_of("codebooks", codebooks)])
    return CodebookWeight(codes, half_codebooks, half_scales)


def _code_bits(codebooks: npt.NDArray) -> int:
    """b of codebooks [m, 2**b, ...]."""
    centroids = codebooks.shape[1]
    if centroids < 2 or centroids & (centroids - 1) or centroids > 1 << 16:
        raise CheckpointError(f"codebooks: {centroids} centroids, must be a power of two from 2 to 65536")
    return centroids.bit_length() - 1
