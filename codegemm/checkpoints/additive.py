"""Additive codebooks: AQLM's layout (Egiazarian et al., 2024), and that of CodeGEMM's published checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.checkpoints.arguments import FLOATS, as_array, refusing
from codegemm.errors import CheckpointError
from codegemm.formats.bits import code_dtype
from codegemm.formats.codebook import CodebookWeight


@refusing()
def from_aqlm(codes: Any, codebooks: Any, scales: Any) -> CodebookWeight:
    """The weight of an AQLM layer.

    codes: int8 or int16 [M, K/v, m], unsigned values stored wrapped.
    codebooks: float16 (or bfloat16, float32) [m, 2**b, 1, v].
    scales: the same dtypes [M, 1, 1, 1].

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
    unsigned = codes.astype(np.int32) & (1 << b) - 1
    return CodebookWeight(
        unsigned.astype(code_dtype(b)),
        _half("codebooks", codebooks[:, :, 0]),
        _half("scales", scales.reshape(-1, 1)),
    )


@refusing()
def from_codegemm(codes: Any, codebooks: Any, scales: Any) -> CodebookWeight:
    """The weight of a published CodeGEMM layer.

    codes: int32 [m, K/(4v), M]: byte j, least significant first, of word w is the code of k-vector 4w + j.
    codebooks: float16 [m, 256, v].
    scales: float16 [K/g, M].

    Raises CheckpointError.
    """
    words = as_array("codes", codes, ("int32", "uint32"), 3)
    codebooks = as_array("codebooks", codebooks, FLOATS, 3)
    scales = as_array("scales", scales, FLOATS, 2)
    if _code_bits(codebooks) != 8:
        raise CheckpointError(f"codebooks: shape {codebooks.shape}, must be [m, 256, v]")
    m, groups_of_four, rows = words.shape
    as_bytes = np.ascontiguousarray(words.astype("<i4")).view(np.uint8).reshape(m, groups_of_four, rows, 4)
    return CodebookWeight(
        as_bytes.transpose(2, 1, 3, 0).reshape(rows, 4 * groups_of_four, m),
        _half("codebooks", codebooks),
        _half("scales", np.ascontiguousarray(scales.T)),
    )


def _code_bits(codebooks: npt.NDArray) -> int:
    """b of codebooks [m, 2**b, ...]."""
    centroids = codebooks.shape[1]
    if centroids < 2 or centroids & (centroids - 1) or centroids > 1 << 16:
        raise CheckpointError(f"codebooks: {centroids} centroids, must be a power of two from 2 to 65536")
    return centroids.bit_length() - 1


def _half(name: str, array: npt.NDArray) -> npt.NDArray[np.float16]:
    """The same values in float16; CheckpointError where one does not fit."""
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise CheckpointError(f"{name}: has a value that is not a finite float16")
    return rounded
