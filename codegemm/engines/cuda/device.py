"""GPUs as CuPy sees them: their names here, why there are none, copies to and from them."""

from __future__ import annotations

import importlib.util
import re
import statistics
from collections.abc import Callable
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

    number = _number(device)
    if number >= count():
        raise RuntimeError(f"{device}: there are {count()} GPUs")
    with cupy.cuda.Device(number):
        return cupy.asarray(array)


def to_host(array: Any) -> np.ndarray:
    """A NumPy array with the same values."""
    return array if isinstance(array, np.ndarray) else array.get()


def count() -> int:
    """How many GPUs there are."""
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


def name(device: str = "cuda:0") -> str:
    """The GPU's product name."""
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(_number(device))["name"].decode())


def cache_and_memory(device: str) -> tuple[int, int]:
    """Bytes of the GPU's L2 cache and of its free memory."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(_number(device))
    with cupy.cuda.Device(_number(device)):
        free, _ = cupy.cuda.runtime.memGetInfo()
    return int(properties["l2CacheSize"]), int(free)


def time_call(call: Callable[[], object], device: str) -> float:
    """Seconds that the GPU spends on what `call` starts on the current stream."""
    import cupy

    with cupy.cuda.Device(_number(device)):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3


def measure_bandwidth(device: str = "cuda:0", repeats: int = 7) -> float:
    """Bytes a second moved by a copy of 1 GiB, read and written counted: the median."""
    import cupy

    with cupy.cuda.Device(_number(device)):
        source = cupy.ones(1 << 28, np.float32)
        target = cupy.empty_like(source)
        times = [time_call(lambda: cupy.copyto(target, source), device) for _ in range(repeats + 1)]
    return 2 * source.nbytes / statistics.median(times[1:])


def _number(device: str) -> int:
    return int(device.partition(":")[2])
