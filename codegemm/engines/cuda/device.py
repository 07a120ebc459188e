"""GPUs as CuPy sees them: their names here, why there are none, copies to and from them."""

from __future__ import annotations

import importlib.util
import math
import re
import statistics
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from codegemm.engines.cuda.gpu import Gpu

_SPIN_CLOCKS = 500_000  # a quarter of a millisecond: longer than any call's host time
_COPIED_BYTES = 1 << 30
_AGREE = 0.01  # what two medians may differ by on a GPU that is warm
_MOST_ROUNDS = 30


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
        try:
            return f"CuPy finds no usable GPU: {driver_problem() or error}"
        except Exception:
            return f"CuPy finds no usable GPU: {error}"


def driver_problem() -> str | None:
    """What is wrong with NVIDIA's driver, or None."""
    import cupy

    driver, needed = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()
    if not driver:
        return "no NVIDIA driver is installed"
    if driver // 1000 < needed // 1000:
        return f"the NVIDIA driver is for CUDA {version_name(driver)}, CuPy for CUDA {needed // 1000}: renew the driver"
    return None


def version_name(number: int) -> str:
    """12.4 of 12040."""
    return f"{number // 1000}.{number % 1000 // 10}"


def check(device: str) -> None:
    """RuntimeError unless there is a GPU `cuda:<number>`."""
    reason = unavailable()
    if reason:
        raise RuntimeError(f"{device}: {reason}")
    if number(device) >= count():
        raise RuntimeError(f"{device}: GPUs are numbered from 0, and this machine has {count()}")


def to_device(array: Any, device: str) -> Any:
    """A copy of a NumPy (or another GPU's) array on `cuda:<number>`; RuntimeError where there is no such GPU.

    It is there when this returns: what reads it may run on any stream.
    """
    check(device)
    import cupy

    with using(device):
        copy = cupy.asarray(array)
        synchronize()
    return copy


def to_host(array: Any) -> np.ndarray:
    """A NumPy array with the same values."""
    return array if isinstance(array, np.ndarray) else array.get()


def address(array: Any) -> int:
    """Where an array's data starts on its GPU."""
    return int(array.data.ptr)


def count() -> int:
    """How many GPUs there are."""
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


def name(device: str = "cuda:0") -> str:
    """The GPU's product name."""
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(number(device))["name"].decode())


def cache_and_memory(device: str) -> tuple[int, int]:
    """Bytes of the GPU's L2 cache and of its free memory."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(number(device))
    with using(device):
        free, _ = cupy.cuda.runtime.memGetInfo()
    return int(properties["l2CacheSize"]), int(free)


@cache
def gpu(device: str) -> Gpu:
    """What decides how a product is cut there, and what it is estimated to take."""
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(number(device))
    # The properties of CUDA 13 have no clocks any more. Memory moves data at both edges of its clock.
    clock, memory_clock, bus_bits = (
        runtime.deviceGetAttribute(attribute, number(device))
        for attribute in (
            runtime.cudaDevAttrClockRate, runtime.cudaDevAttrMemoryClockRate, runtime.cudaDevAttrGlobalMemoryBusWidth,
        )
    )  # fmt: skip
    return Gpu(
        arch=10 * properties["major"] + properties["minor"],
        multiprocessors=properties["multiProcessorCount"],
        shared_per_block=properties["sharedMemPerBlockOptin"],
        shared_per_multiprocessor=properties["sharedMemPerMultiprocessor"],
        threads_per_multiprocessor=properties["maxThreadsPerMultiProcessor"],
        clock=1e3 * clock or Gpu.clock,
        bandwidth=2e3 * memory_clock * bus_bits / 8 or Gpu.bandwidth,
        l2_bytes=properties["l2CacheSize"],
    )


def using(device: str) -> Any:
    """A context in which that GPU is the current one."""
    import cupy

    return cupy.cuda.Device(number(device))


def synchronize() -> None:
    """Wait for everything on the current stream."""
    import cupy

    cupy.cuda.get_current_stream().synchronize()


def time_call(call: Callable[[], object], device: str) -> float:
    """Seconds that the GPU spends on what `call` starts on the current stream, queued before it begins."""
    import cupy

    from codegemm.engines.cuda import library

    with using(device):
        spin = library.function("spin.cu", "spin", device)
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        spin((1,), (1,), (np.int64(_SPIN_CLOCKS),))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3


def measure_bandwidth(device: str = "cuda:0", repeats: int = 7, size: int = _COPIED_BYTES) -> float:
    """Bytes a second moved by a copy of `size` bytes, read and written counted: the median, once two of them agree.

    An idle GPU has lowered its clocks.
    """
    import cupy

    with using(device):
        source = cupy.ones(size // 4, np.float32)
        target = cupy.empty_like(source)

        def median() -> float:
            return statistics.median(time_call(lambda: cupy.copyto(target, source), device) for _ in range(repeats))

        before, now = math.inf, median()
        for _ in range(_MOST_ROUNDS):
            if abs(now - before) <= _AGREE * now:
                break
            before, now = now, median()
    return 2 * source.nbytes / now


def warm_up(device: str = "cuda:0") -> None:
    """Have the GPU's clocks raised, as they are while it works."""
    measure_bandwidth(device, 9, _COPIED_BYTES // 16)


def number(device: str) -> int:
    """1 of `cuda:1`."""
    return int(device.partition(":")[2])
