"""GPUs as CuPy sees them: their names here, why there are none, copies to and from them."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from typing import Any

import numpy as np


def parse_device(device: str) -> str:
    """`cpu`, or `cuda:<number>` of `cuda` and `cuda:<number>`; ValueError for anything else."""
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", device) if isinstance(device, str) else None
    if match is None:
        raise ValueError(f"device {device!r}: must be 'cpu', 'cuda' or 'cuda:<number>'")
    return "cpu" if device == "cpu" else f"cuda:{int(match[1] or 0)}"


@cache
def unavailable() -> str | None:
    """Why no GPU can be used, in one sentence, or None."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install 'codegemm[cuda12]', or cuda13)"
    try:
        import cupy

        if cupy.cuda.runtime.getDeviceCount():
            return None
        return "CuPy finds no GPU"
    except Exception as error:  # a missing driver or library: every version raises another type
        return f"CuPy finds no usable GPU: {error}"


def to_device(array: Any, device: str) -> Any:
    """A copy of a NumPy (or another GPU's) array on `cuda:<number>`; RuntimeError where there is no such GPU."""
    reason = unavailable()
    if reason:
        raise RuntimeError(f"{device}: {reason}")
    import cupy

    number = int(device.partition(":")[2])
    if number >= cupy.cuda.runtime.getDeviceCount():
        raise RuntimeError(f"{device}: there are {cupy.cuda.runtime.getDeviceCount()} GPUs")
    with cupy.cuda.Device(number):
        return cupy.asarray(array)


def to_host(array: Any) -> np.ndarray:
    """A NumPy array with the same values."""
    return array if isinstance(array, np.ndarray) else array.get()
