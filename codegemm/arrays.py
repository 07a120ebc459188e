"""Whose arrays come in: NumPy, CuPy or torch, found without importing a library that isn't loaded already."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np

# Dtypes that a product takes; names, because bfloat16 exists only once ml_dtypes is imported.
FLOATS = ("float16", "bfloat16", "float32", "float64")


@cache
def bfloat16() -> np.dtype:
    """NumPy's view of bfloat16 (the ml_dtypes extension type)."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


@cache
def name_of(dtype: np.dtype) -> str:
    """`dtype.name`, which NumPy puts together anew at every look."""
    return dtype.name


def float_dtype(dtype: Any) -> np.dtype:
    """A dtype or its name as a NumPy dtype, one of `FLOATS`; TypeError otherwise."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        return bfloat16()
    resolved = np.dtype(dtype).newbyteorder("=")
    if resolved.name not in FLOATS:
        raise TypeError(f"dtype {resolved}: must be one of {', '.join(FLOATS)}")
    return resolved


def check_float(what: str, array: Any) -> None:
    """TypeError for an array or a torch tensor whose dtype is none of `FLOATS`."""
    name = str(array.dtype).removeprefix("torch.") if is_torch(array) else name_of(array.dtype)
    if name not in FLOATS:
        raise TypeError(f"{what}: dtype {name}, must be one of {', '.join(FLOATS)}")


def as_array(values: Any) -> Any:
    """NumPy's and CuPy's arrays as they are, others on a GPU as CuPy's, anything else through NumPy."""
    if isinstance(values, np.ndarray) or array_module(values) is not np:
        return values
    if hasattr(type(values), "__cuda_array_interface__"):
        import cupy

        return cupy.asarray(values)
    return np.asarray(values)


def array_module(array: Any) -> Any:
    """numpy or cupy, whichever the array is of."""
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else np


def is_torch(array: Any) -> bool:
    """Whether this is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)
