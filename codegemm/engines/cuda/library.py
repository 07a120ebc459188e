"""The compiled kernels as CuPy's functions, a GPU at a time, and the workspaces they share."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from codegemm.engines.cuda import compiler, dependent, device, rows

_ALONE = ("spin.cu",)  # what times others must not overlap them
_lock = threading.RLock()
_functions: dict[tuple[str, str, str], Any] = {}


class _Workspaces(threading.local):
    """A thread's workspaces by GPU and stream. Threads may share a stream, on which the launches of one's product then
    come between those of another's."""

    def __init__(self) -> None:
        self.by_place: dict[tuple[str, int], Any] = {}


_workspaces = _Workspaces()


@dataclass(frozen=True)
class Stream:
    """A stream of another library. CuPy's launches read its pointer, `Stream.from_external` its protocol."""

    ptr: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr


def unavailable() -> str | None:
    """Why kernels can't be compiled, or None."""
    try:
        compiler.version()
    except compiler.CompilerError as error:
        return str(error)
    return None


def function(source: str, instance: str, where: str) -> Any:
    """The kernel of a template's instance, loaded on the GPU `where`; compiled at its first use."""
    key = (source, instance, where)
    found = _functions.get(key)
    if found is None:
        with _lock:
            if key not in _functions:
                _functions[key] = _load(*key)
            found = _functions[key]
    return found


def constant(value: np.generic | np.ndarray) -> Any:
    """A number or structure as a launch's argument: CuPy's own wrapper, which it else makes anew at every launch.

    For a structure that takes as long as the launch itself.
    """
    import cupy

    wrapper = getattr(getattr(cupy.cuda, "function", None), "CNumpyArray", None)
    return value if wrapper is None else wrapper(np.asarray(value))


def find_workspace(where: str, size: int, stream: Any = None) -> Any:
    """This thread's workspace for products on `stream` (CuPy's current one); None if too small."""
    found = _workspaces.by_place.get(_place(where, stream))
    return None if found is None or found.nbytes < size else found


def workspace(where: str, size: int) -> Any:
    """This thread's workspace for products on CuPy's current stream, made anew where it is too small."""
    found = find_workspace(where, size)
    if found is None:
        found = _workspaces.by_place[_place(where)] = new_workspace(size)
    return found


def _place(where: str, stream: Any = None) -> tuple[str, int]:
    if stream is None:
        import cupy

        stream = cupy.cuda.get_current_stream()
    return where, stream.ptr


def new_workspace(size: int) -> Any:
    """uint8 array on the current GPU, zeros."""
    import cupy

    return cupy.zeros(max(size, rows.COUNTER_BYTES), np.uint8)


def forget() -> None:
    """Load and allocate anew at this thread's next call."""
    with _lock:
        _functions.clear()
    _workspaces.by_place.clear()


def _load(source: str, instance: str, where: str) -> Any:
    import cupy

    gpu = device.gpu(where)
    path = compiler.build(source, instance, gpu.arch)
    with device.using(where):
        kernel = cupy.RawModule(path=str(path)).get_function(compiler.entry_name(instance))
        # Only what a launch asks for counts; this lifts the limit of 48 KiB.
        kernel.max_dynamic_shared_size_bytes = gpu.shared_per_block
        return kernel if source in _ALONE else dependent.dependent(kernel, gpu)


def _renew_lock() -> None:
    """A child forked while another thread compiles must not wait for that thread."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
