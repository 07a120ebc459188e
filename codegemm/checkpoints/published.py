"""The layout of CodeGEMM's published checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np

from codegemm.checkpoints.arguments import as_array, code_bits, half
from codegemm.errors import CheckpointError
from codegemm.formats.codebook import CodebookWeight


def from_codegemm(codes: Any, codebooks: Any, scales: Any) -> CodebookWeight:
    """The weight of a published CodeGEMM layer.

    codes: int32 [m, K/(4v), M]: byte j, least significant first, of word w is the code of k-vector 4w + j.
    codebooks: float16 [m, 256, v].
    scales: float16 [K/g, M].

    Raises CheckpointError.
    """
    words = as_array("codes", codes, ("int32", "uint32"), 3)
    codebooks = as_array("codebooks", codebooks, ("float16", "bfloat16", "float32"), 3)
    scales = as_array("scales", scales, ("float16", "bfloat16", "float32"), 2)
    if code_bits("codebooks", codebooks) != 8:
        raise CheckpointError(f"codebooks: shape {codebooks.shape}, must be [m, 256, v]")
    m, groups_of_four, rows = words.shape
    as_bytes = np.ascontiguousarray(words.astype("<i4")).view(np.uint8).reshape(m, groups_of_four, rows, 4)
    try:
        return CodebookWeight(
            as_bytes.transpose(2, 1, 3, 0).reshape(rows, 4 * groups_of_four, m),
            half("codebooks", codebooks),
            half("scales", np.ascontiguousarray(scales.T)),
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from None
