"""The compiled kernels as CuPy's functions, a GPU at a time, and the workspaces they share."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from codegemm import devices
from codegemm.devices import Device
from codegemm.engines.builds import CompilerError
from codegemm.engines.cuda import compiler
from codegemm.engines.cuda import dependent as launches
from codegemm.engines.cuda.gpu import gpu_of
from codegemm.engines.cuda.steps import COUNTER_BYTES
from codegemm.locks import ForkSafeLock

_lock = ForkSafeLock()
_functions: dict[tuple[str, str, Device, bool], Any] = {}


class _Workspaces(threading.local):
    """A thread's workspaces by GPU and stream. Threads may share a stream, on which the launches of one's product then
    come between those of another's."""

    def __init__(self) -> None:
        self.by_place: dict[tuple[Device, int], Any] = {}
        self.outgrown: list[Any] = []  # CUDA graphs may have captured them


_workspaces = _Workspaces()


def unavailable() -> str | None:
    """Why kernels can't be compiled, or None."""
    try:
        compiler.version()
    except CompilerError as error:
        return str(error)
    return None


def function(source: str, instance: str, where: Device, dependent: bool = True) -> Any:
    """The kernel of a template's instance, loaded on the GPU `where`; compiled at its first use.

    dependent: it may start before the one before it has ended, where the GPU can do that.
    """
    key = (source, instance, where, dependent)
    loaded = _functions.get(key)
    if loaded is None:
        with _lock:
            loaded = _functions.get(key) or _functions.setdefault(key, _load(*key))
    return loaded


def constant(value: np.generic | np.ndarray) -> Any:
    """A number or structure as a launch's argument: CuPy's own wrapper, which it else makes anew at every launch.

    For a structure that takes as long as the launch itself.
    """
    import cupy

    wrapper = getattr(getattr(cupy.cuda, "function", None), "CNumpyArray", None)
    return value if wrapper is None else wrapper(np.asarray(value))


def find_workspace(where: Device, size: int, stream: Any = None) -> Any:
    """This thread's workspace for products on `stream` (CuPy's current one); None if too small."""
    kept = _workspaces.by_place.get(_place(where, stream))
    return None if kept is None or kept.nbytes < size else kept


def workspace(where: Device, size: int) -> Any:
    """This thread's workspace for products on CuPy's current stream, made anew where it is too small.

    While the stream is captured, when nothing can be allocated, that of another stream on which the thread multiplied
    before; RuntimeError if there is none.
    """
    kept = find_workspace(where, size)
    if kept is None and _is_captured():
        others = (each for (device, _), each in _workspaces.by_place.items() if device == where)
        kept = max(others, key=lambda each: each.nbytes, default=None)
        if kept is None or kept.nbytes < size:
            raise RuntimeError("a product is captured that this thread did not make before: make it once, then capture")
    elif kept is None:
        outgrown = _workspaces.by_place.get(_place(where))
        if outgrown is not None:
            _workspaces.outgrown.append(outgrown)
            size = max(size, 2 * outgrown.nbytes)
        kept = _workspaces.by_place[_place(where)] = new_workspace(size)
    return kept


def _is_captured() -> bool:
    """Whether a CUDA graph captures CuPy's current stream."""
    import cupy

    return bool(cupy.cuda.runtime.streamIsCapturing(cupy.cuda.get_current_stream().ptr))


def _place(where: Device, stream: Any = None) -> tuple[Device, int]:
    if stream is None:
        import cupy

        stream = cupy.cuda.get_current_stream()
    return where, stream.ptr


def new_workspace(size: int) -> Any:
    """uint8 array on the current GPU, zeros."""
    import cupy

    return cupy.zeros(max(size, COUNTER_BYTES), np.uint8)


def forget() -> None:
    """Load and allocate anew at this thread's next call."""
    with _lock:
        _functions.clear()
    _workspaces.by_place.clear()
    _workspaces.outgrown.clear()


def _load(source: str, instance: str, where: Device, dependent: bool) -> Any:
    import cupy

    gpu = gpu_of(where)
    path = compiler.build(source, instance, gpu.arch)
    with devices.using(where):
        kernel = cupy.RawModule(path=str(path)).get_function(compiler.entry_name(instance))
        # Only what a launch asks for counts; this lifts the limit of 48 KiB.
        kernel.max_dynamic_shared_size_bytes = gpu.shared_per_block
        return launches.dependent(kernel, gpu.arch) if dependent else kernel
