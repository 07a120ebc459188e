"""What is expected of rounding W and x to bfloat16, in one part or in two, as `bfloat16.hpp` multiplies them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import arrays
from codegemm.engines.cpu import rounding
from codegemm.formats.codebook import CodebookWeight

PROMISED = {1: 1e-2, 2: 2e-4}  # an error, of the norm of y, by the parts of a number


def expected(weight: CodebookWeight, parts: int) -> tuple[dict[str, npt.NDArray], dict[str, Any]]:
    """The fields of DequantArgs that `rounding.expected` tells, for numbers of so many parts of bfloat16."""
    [kept] = rounding.sums(weight, weight.part_codebooks.astype(np.float32))
    scales = weight.scales[rounding.rows_of(weight)].astype(np.float32)[..., None, None]
    lost = kept * scales
    for _ in range(parts):
        lost = lost - lost.astype(arrays.bfloat16()).astype(np.float32)
    lost = np.divide(lost, scales, out=np.zeros_like(lost), where=scales != 0)
    return rounding.expected(weight, kept, lost, PROMISED[parts])
