"""Launches of kernels that may start before the one before them on their stream has ended, and of clusters.

Programmatic dependent launch: such a kernel loads what no other kernel writes, its codes and codebooks, and waits
before it touches x, y or the workspace (`ptx::wait_for_previous`); what comes before lets it start
(`ptx::let_next_start`). Thread blocks of a cluster run at once and send each other what they have. CuPy has no call for
either, so that of the driver is called through ctypes.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable
from functools import cache, partial
from typing import Any

MIN_ARCH = 90
_MIN_DRIVER = 12030  # whose graphs hold such launches
_SERIALIZATION, _CLUSTER = 6, 4  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, _CLUSTER_DIMENSION
_ANY_CLUSTER = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_NO_SUCH_CLUSTER = 912  # CUDA_ERROR_INVALID_CLUSTER_SIZE


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
    """CUlaunchAttribute with a value of up to three numbers."""

    _fields_ = [("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_uint * 16)]


@cache
def _attributes(grid: tuple[int, ...], cluster: int) -> Any:
    """Of a dependent launch, in clusters along its grid's last axis."""
    shape = (1,) * (len(grid) - 1) + (cluster, 1, 1)
    attributes = (_Attribute * 2)()
    attributes[0].id, attributes[0].value[0] = _SERIALIZATION, 1
    attributes[1].id, attributes[1].value[:3] = _CLUSTER, shape[:3]
    return attributes


class _Thread(threading.local):
    """The GPUs whose contexts were made current on a thread."""

    def __init__(self) -> None:
        self.gpus: set[int] = set()


_threads = _Thread()


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


def dependent(kernel: Any, arch: int) -> Any:
    """CuPy's kernel, loaded on the current GPU of that architecture, as one that may start early where GPU and driver
    let it."""
    return DependentKernel(kernel) if arch >= MIN_ARCH and unavailable() is None else kernel


class DependentKernel:
    """CuPy's kernel, whose launches are bound before they are made."""

    def __init__(self, kernel: Any) -> None:
        self.cupys = kernel
        self._function = int(kernel.kernel.ptr)  # on the current GPU, whichever is current later
        _check(
            _driver().cuFuncSetAttribute(ctypes.c_void_p(self._function), _ANY_CLUSTER, 1), "let a kernel have clusters"
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cupys, name)

    def bound(
        self, grid: tuple[int, ...], block: tuple[int, ...], shared_bytes: int, cluster: int, constants: tuple[Any, ...]
    ) -> DependentLaunch:
        """A launch of so many thread blocks and threads, with its last arguments as CuPy's pointers to them."""
        attributes = ctypes.addressof(_attributes(grid, cluster)), 1 if cluster == 1 else 2
        config = (*grid, 1, 1)[:3], (*block, 1, 1)[:3], shared_bytes, None, *attributes
        return DependentLaunch(self.cupys.name, _Slots(self._function, config, constants))


class DependentLaunch:
    """A function of x, out and workspace (arrays on the current GPU) and a stream (None for CuPy's current one).

    Raises RuntimeError where the driver refuses.
    """

    def __init__(self, name: str, slots: _Slots) -> None:
        import cupy

        self._name, self._slots = name, slots
        self._current_stream = cupy.cuda.get_current_stream

    def __call__(self, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        """Start it."""
        slots = self._slots
        stream = (stream or self._current_stream()).ptr
        # From here on nothing of Python's own is called: what interrupts it may launch, too.
        slots.config.stream = stream
        slots.arrays[:] = [x.data.ptr, out.data.ptr, workspace.data.ptr]
        status = slots.start()
        if status:
            _check(status, f"launch {self._name}")


class _Slots(threading.local):
    """What the driver reads of a launch, filled up once but for three addresses and the stream. Each thread has its
    own, for ctypes lets other threads run meanwhile."""

    def __init__(self, function: int, config: tuple[Any, ...], constants: tuple[Any, ...]) -> None:
        _make_context_current()
        self.arrays = (ctypes.c_void_p * 3)()
        first = ctypes.addressof(self.arrays)
        places = (first, first + 8, first + 16, *(constant.ptr for constant in constants))
        self.config = _Config(*config)
        self.start = partial(
            _driver().cuLaunchKernelEx,
            ctypes.byref(self.config), ctypes.c_void_p(function), (ctypes.c_void_p * len(places))(*places), None,
        )  # fmt: skip


def _make_context_current() -> None:
    """The current GPU's, which on a new thread CuPy's own launches would do."""
    import cupy

    number = cupy.cuda.runtime.getDevice()
    if number not in _threads.gpus:
        cupy.cuda.runtime.memGetInfo()
        _threads.gpus.add(number)


# A kernel that does nothing.
_NOTHING = b".version 7.8\n.target sm_90\n.address_size 64\n.visible .entry nothing() { ret; }\0"


def most_clusters(gpu: int, sizes: Iterable[int], shared_bytes: int) -> tuple[int, ...]:
    """How many clusters of so many thread blocks run at once on a GPU, for each size, where each block has a
    multiprocessor's shared memory for itself; empty where there are none."""
    import cupy

    if unavailable():
        return ()
    with cupy.cuda.Device(gpu):
        _make_context_current()
        driver, module, function = _driver(), ctypes.c_void_p(), ctypes.c_void_p()
        _check(driver.cuModuleLoadData(ctypes.byref(module), _NOTHING), "load a kernel")
        try:
            _check(driver.cuModuleGetFunction(ctypes.byref(function), module, b"nothing"), "find a kernel")
            for attribute, value in ((_ANY_CLUSTER, 1), (_SHARED_BYTES, shared_bytes)):
                _check(driver.cuFuncSetAttribute(function, attribute, value), "let a kernel have clusters")
            return tuple(_most_of_size(function, size, shared_bytes) for size in sizes)
        finally:
            driver.cuModuleUnload(module)


def _most_of_size(function: ctypes.c_void_p, size: int, shared_bytes: int) -> int:
    grid, count = (1, size), ctypes.c_int()
    config = _Config((*grid, 1), (32, 1, 1), shared_bytes, None, ctypes.addressof(_attributes(grid, size)), 2)
    status = _driver().cuOccupancyMaxActiveClusters(ctypes.byref(count), function, ctypes.byref(config))
    if status == _NO_SUCH_CLUSTER:
        return 0
    _check(status, "count clusters")
    return count.value


def _check(status: int, what: str) -> None:
    """RuntimeError for a status that is none of success."""
    if status:
        raise RuntimeError(f"the NVIDIA driver refused to {what}: error {status}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
