"""Whose arrays come in: NumPy, CuPy or torch, found without importing a library that isn't loaded already."""

from __future__ import annotations

import sys
from contextlib import suppress
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
    """A dtype of NumPy's or torch's, or its name, as a NumPy dtype, one of `FLOATS`; TypeError otherwise."""
    with suppress(TypeError, ValueError):  # NumPy's don't say what is allowed
        dtype = _numpys(_name(dtype) if type(dtype).__module__ == "torch" else dtype).newbyteorder("=")
    if not isinstance(dtype, np.dtype) or dtype.name not in FLOATS:
        raise TypeError(f"dtype {dtype}: must be one of {', '.join(FLOATS)}")
    return dtype


def _numpys(dtype: Any) -> np.dtype:
    """As `numpy.dtype`, which doesn't know bfloat16 by its name."""
    return bfloat16() if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype)


def _name(dtype: Any) -> str:
    """A dtype of torch's as NumPy would call it."""
    return str(dtype).removeprefix("torch.")


def check_float(what: str, array: Any) -> None:
    """TypeError for an array or a torch tensor whose dtype is none of `FLOATS`."""
    name = _name(array.dtype) if is_torch(array) else name_of(array.dtype)
    if name not in FLOATS:
        raise TypeError(f"{what}: dtype {name}, must be one of {', '.join(FLOATS)}")


def as_array(values: Any, name: str = "") -> Any:
    """NumPy's and CuPy's arrays as they are, tensors and others as NumPy's or, on a GPU, CuPy's on the same memory,
    anything else through NumPy. name: what errors call it."""
    if isinstance(values, np.ndarray) or array_module(values) is not np:
        return values
    if is_torch(values):
        return from_torch(values, name)
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


def from_torch(tensor: Any, name: str = "") -> Any:
    """A NumPy array, or CuPy array for a CUDA tensor, on the memory of a torch tensor, which it keeps (bfloat16
    included).

    TypeError, with the name, for a tensor that has no such memory: on another device, sparse, negated, of a dtype that
    NumPy hasn't.
    """
    tensor = tensor.detach()
    try:
        if tensor.device.type == "cuda":
            return view(tensor, tensor)
        if _name(tensor.dtype) == "bfloat16":
            return tensor.view(sys.modules["torch"].int16).numpy().view(bfloat16())
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:  # torch says what it is that is in the way
        raise TypeError(
            f"{name}: " * bool(name) + f"tensor of {tensor.dtype} on {tensor.device}, must be dense, on the CPU or a "
            f"GPU, of a dtype that NumPy has ({error})"
        ) from None


def written(tensor: Any) -> None:
    """Tell torch's graphs that a tensor's memory was written to: one that needs what was there raises, then."""
    sys.modules["torch"].autograd.graph.increment_version(tensor)


def to_torch(array: np.ndarray) -> Any:
    """The inverse of `from_torch`, on the same memory; on a copy's of an array that must not be written to."""
    import torch

    if not array.flags.writeable:
        array = array.copy()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def view(tensor: Any, owner: Any = None) -> Any:
    """A CuPy array on a CUDA tensor's memory; nothing is copied or synchronised.

    owner: what the array keeps, so that the memory stays; without one it is valid as long as the tensor is.
    """
    import cupy

    if tensor.is_neg():
        raise TypeError("it is a view of numbers with the other sign: resolve_neg() makes it plain")
    dtype, size = _numpys(_name(tensor.dtype)), tensor.element_size()
    extent = (
        1 + sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0
    )
    memory = cupy.cuda.UnownedMemory(tensor.data_ptr(), extent * size, owner, tensor.device.index)
    strides = tuple(step * size for step in tensor.stride())
    return cupy.ndarray(tuple(tensor.shape), dtype, cupy.cuda.MemoryPointer(memory, 0), strides)
