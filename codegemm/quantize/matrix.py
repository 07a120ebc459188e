"""The dense matrix that comes in, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import arrays, devices
from codegemm.formats.codebook import check_finite


def as_matrix(W: Any) -> npt.NDArray[np.float32]:
    """W as float32 [out_features, in_features]; ValueError or TypeError for anything that isn't a finite matrix."""
    array = devices.to_host(W)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"W: shape {array.shape}, must be [out_features, in_features]")
    arrays.check_float("W", array)
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(array.astype(np.float32, copy=False))
    check_finite("W", matrix)
    return matrix
