"""Launches of kernels that may start before the one before them on their stream has ended.

Programmatic dependent launch: such a kernel loads what no other kernel writes, its codes and codebooks, and waits
before it touches x, y or the workspace (`ptx::wait_for_previous`); what comes before lets it start
(`ptx::let_next_start`). CuPy has no call for it, so that of the driver is called through ctypes.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from typing import Any

from codegemm.engines.cuda.gpu import Gpu

MIN_ARCH = 90
_MIN_DRIVER = 12030  # whose graphs hold such launches
_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("count", ctypes.c_uint),
    ]


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute with a value of type int."""

    _fields_ = [("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60)]


_attribute = _Attribute(_SERIALIZATION, 0, 1)
_threads = threading.local()


@cache
def unavailable() -> str | None:
    """Why the driver has no such launches, or None."""
    import cupy

    try:
        if not hasattr(_driver(), "cuLaunchKernelEx") or cupy.cuda.runtime.driverGetVersion() < _MIN_DRIVER:
            return "the NVIDIA driver is too old for dependent launches in graphs"
    except OSError as error:
        return str(error)
    if not hasattr(cupy.cuda.function, "CNumpyArray"):
        return "this CuPy does not tell where arguments are"
    return None


def dependent(kernel: Any, gpu: Gpu) -> Any:
    """CuPy's kernel, loaded on the current GPU, as one that may start early where GPU and driver let it."""
    return DependentKernel(kernel) if gpu.arch >= MIN_ARCH and unavailable() is None else kernel


class DependentKernel:
    """Called as CuPy's kernels are: grid, block, arguments (arrays, and numbers and structures as CuPy's pointers to
    them), bytes of shared memory and a stream. Raises RuntimeError where the driver refuses."""

    def __init__(self, kernel: Any) -> None:
        import cupy

        self._kernel, self._function = kernel, ctypes.c_void_p(kernel.kernel.ptr)
        self._array = cupy.ndarray
        self._current_stream = cupy.cuda.get_current_stream
        self._launch = _driver().cuLaunchKernelEx

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        *,
        shared_mem: int = 0,
        stream: Any = None,
    ) -> None:
        """Start it."""
        if not hasattr(_threads, "ready"):
            import cupy

            cupy.cuda.runtime.memGetInfo()  # makes the context current on a new thread
            _threads.ready = True
        count = len(args)
        addresses = (ctypes.c_void_p * count)()
        pointers = (ctypes.c_void_p * count)()
        first = ctypes.addressof(addresses)
        for i, argument in enumerate(args):
            if type(argument) is self._array:
                addresses[i] = argument.data.ptr
                pointers[i] = first + 8 * i
            else:
                pointers[i] = argument.ptr
        config = _Config(
            (*grid, 1, 1)[:3], (*block, 1, 1)[:3], shared_mem, (stream or self._current_stream()).ptr,
            ctypes.addressof(_attribute), 1,
        )  # fmt: skip
        status = self._launch(ctypes.byref(config), self._function, pointers, None)
        if status:
            raise RuntimeError(f"the NVIDIA driver refused to launch {self._kernel.name}: error {status}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
