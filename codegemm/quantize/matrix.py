"""The dense matrix that comes in, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import arrays, devices
from codegemm.formats.codebook import check_finite

_SINGLE = np.finfo(np.float32)


def as_matrix(W: Any) -> npt.NDArray[np.float32]:
    """W as float32 [out_features, in_features]; ValueError or TypeError for anything that isn't a finite matrix, or has
    rows whose weights are too small or too large for float32."""
    array = devices.to_host(W, "W")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"W: shape {array.shape}, must be [out_features, in_features]")
    arrays.check_float("W", array)
    with np.errstate(invalid="ignore"):  # NaNs of bfloat16
        largest = np.maximum(array.max(1), -array.min(1)).astype(np.float64)
    if not np.isfinite(largest).all():
        check_finite("W", array)
    lost = np.flatnonzero((largest > _SINGLE.max) | ((largest < _SINGLE.tiny) & (largest != 0)))
    if len(lost):
        raise ValueError(f"W: the largest weight of row {lost[0]} is {largest[lost[0]]:.3g}, must be a normal float32")
    return np.ascontiguousarray(array.astype(np.float32, copy=False))
