"""AQLM's layout (Egiazarian et al., 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np

from codegemm.checkpoints.arguments import as_array, code_bits, half
from codegemm.errors import CheckpointError
from codegemm.formats.bits import code_dtype
from codegemm.formats.codebook import CodebookWeight


def from_aqlm(codes: Any, codebooks: Any, scales: Any) -> CodebookWeight:
    """The weight of an AQLM layer.

    codes: int8 or int16 [M, K/v, m], unsigned values stored wrapped.
    codebooks: float16 (or bfloat16, float32) [m, 2**b, 1, v].
    scales: the same dtypes [M, 1, 1, 1].

    Layers with an out_group_size above 1 are refused: one of their codes spans several rows, which no kernel here
    multiplies by. Raises CheckpointError.
    """
    floats = ("float16", "bfloat16", "float32")
    codes = as_array("codes", codes, ("int8", "uint8", "int16", "uint16"), 3)
    codebooks = as_array("codebooks", codebooks, floats, 4)
    scales = as_array("scales", scales, floats, 4)
    if codebooks.shape[2] != 1:
        raise CheckpointError(
            f"codebooks: out_group_size {codebooks.shape[2]}, must be 1: the kernels take codes of one row each"
        )
    b = code_bits("codebooks", codebooks)
    if 8 * codes.dtype.itemsize < b:
        raise CheckpointError(f"codes: dtype {codes.dtype}, too narrow for {b}-bit codes")
    if scales.shape[1:] != (1, 1, 1):
        raise CheckpointError(f"scales: shape {scales.shape}, must be [{codes.shape[0]}, 1, 1, 1]")
    unsigned = codes.astype(np.int32) & (1 << b) - 1
    try:
        return CodebookWeight(
            unsigned.astype(code_dtype(b)),
            half("codebooks", codebooks[:, :, 0]),
            half("scales", scales.reshape(-1, 1)),
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from None
