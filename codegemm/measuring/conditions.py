"""What times depend on beside the kernel: threads, the instruction set, the dtype of x, the memory's bandwidth."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from codegemm import devices
from codegemm.engines.cpu import device, get_num_threads, isa, library, set_num_threads
from codegemm.engines.cuda import timing
from codegemm.engines.cuda.gpu import LANES, gpu_of

_NUMBER_BYTES = 4  # of the float32 that a processor multiplies
_LONGEST, _LOOK = 0.5, 0.01  # seconds
_AT_REST = 0.1  # of a processor


@contextmanager
def path(name: str) -> Iterator[None]:
    """The CPU kernels compiled for that instruction set; nothing without a name."""
    if not name:
        yield
        return
    before = os.environ.get(isa.VARIABLE)
    try:
        os.environ[isa.VARIABLE] = name
        library.forget()
        yield
    finally:
        del os.environ[isa.VARIABLE]
        if before is not None:
            os.environ[isa.VARIABLE] = before
        library.forget()


@contextmanager
def threads(count: int | None, with_torch: bool = True) -> Iterator[None]:
    """The same number of threads for the kernels, NumPy's BLAS and torch; with_torch: imports it where it is installed,
    for what will be used within."""
    before = get_num_threads()
    count = before if count is None else count
    with ExitStack() as stack:
        set_num_threads(count)
        stack.callback(set_num_threads, before)
        torch = _torch(with_torch)
        if torch is not None:
            # Asked before the limit, of which torch takes its own number for that: all threads to come would have it.
            stack.callback(torch.set_num_threads, torch.get_num_threads())
        from threadpoolctl import threadpool_limits

        stack.enter_context(threadpool_limits(count))
        if torch is not None:
            torch.set_num_threads(count)
        yield


def _torch(wanted: bool) -> Any:
    """torch where it is there already, or installed and wanted; else None."""
    if "torch" in sys.modules or (wanted and importlib.util.find_spec("torch") is not None):
        return importlib.import_module("torch")
    return None


def settle() -> None:
    """Wait for the threads of this process to come to rest, at most `_LONGEST` seconds: those of a BLAS or OpenMP spin
    after its last call, at the next kernel's expense; OpenBLAS's for a tenth of a second."""
    end = time.perf_counter() + _LONGEST
    while (begin := time.perf_counter()) < end:
        worked = time.process_time()
        time.sleep(_LOOK)
        if time.process_time() - worked < _AT_REST * (time.perf_counter() - begin):
            return


def engine_of(name: str) -> str:
    """`cpu` or `cuda`; `auto` is the latter where there is a GPU. ValueError where there is none, or for another
    name."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"engine {name!r}: must be auto, cpu or cuda")
    reason = devices.unavailable()
    if name == "cuda" and reason:
        raise ValueError(f"cuda: {reason}")
    return ("cpu" if reason else "cuda") if name == "auto" else name


def dtype_of(engine: str) -> np.dtype:
    """Of x: what a model uses on that engine."""
    return np.dtype(np.float32 if engine == "cpu" else np.float16)


def machine(engine: str) -> tuple[str, int]:
    """The name of the processor or GPU, and the threads that products have there."""
    return (device.name(), get_num_threads()) if engine == "cpu" else (devices.name(), 1)


def bandwidth(engine: str) -> float:
    """Bytes a second that the processor reads, or a GPU's copy moves, now."""
    return device.measure_bandwidth() if engine == "cpu" else timing.measure_bandwidth()


def multiply_adds(engine: str) -> float:
    """Multiply-adds a second of a large dense product with x in `dtype_of(engine)`, now."""
    return device.measure_multiply_adds() if engine == "cpu" else timing.measure_multiply_adds()


def lookups(engine: str, multiply_adds: float) -> float:
    """Entries of tables that are gathered and added in a second: on a processor of a byte each, four times as many as
    there are multiply-adds; on a GPU as many as shared memory has banks, a clock and multiprocessor."""
    if engine == "cpu":
        return _NUMBER_BYTES * multiply_adds
    gpu = gpu_of(devices.FIRST_GPU)
    return float(LANES * gpu.multiprocessors * gpu.clock)
