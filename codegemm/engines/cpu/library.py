"""The compiled kernels as Python callables, and the thread pool they share."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from ctypes import POINTER, PYFUNCTYPE, Structure, c_char, c_int, c_void_p, py_object
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from codegemm.arrays import name_of
from codegemm.engines import declarations
from codegemm.engines.builds import CompilerError
from codegemm.engines.cpu import compiler, isa
from codegemm.locks import ForkSafeLock

DTYPES = declarations.enumeration(compiler.SOURCES / "floats.hpp", "Dtype")

MAX_THREADS = 1024
MAX_KEPT_BYTES = 64 << 20  # of a workspace; the product that needs more takes longer than to allocate it
_ADDRESSES = ("x", "out", "workspace", "bias")  # of every call, ahead of what stays
_SET_BY_CALLS = {*_ADDRESSES, "bias_pitch", "x_dtype", "out_dtype", "n"}
_pack = Struct(f"{len(_ADDRESSES)}P")

# Flags of a NumPy array, as its C API numbers them.
CONTIGUOUS, ALIGNED, NATIVE, WRITEABLE = 0x1, 0x100, 0x200, 0x400

_lock = ForkSafeLock()
_libraries: dict[Path, ctypes.CDLL | None] = {}
_threads: int | None = None


@cache
def function(source: Path, name: str, *argtypes: Any) -> Any:
    """The exported function `name` of a source file, its first argument the parallel loop; None without a compiler.

    argtypes: ctypes types of the arguments after the loop; a Structure stands for a pointer to it, or its bytes. The
    first failure to compile warns, once, and says what to install.
    """
    library, pool = _load(source), _load(compiler.SOURCES / "threads.cpp")
    if library is None or pool is None:
        return None
    call = getattr(library, name)
    by_pointer = (c_void_p if issubclass(t, Structure) else t for t in argtypes)
    call.argtypes, call.restype = (c_void_p, *by_pointer), None
    return partial(call, ctypes.cast(pool.codegemm_parallel_for, c_void_p))


@dataclass(frozen=True)
class Load:
    """Compile and load a source file, as `function` does at a kernel's first use."""

    source: Path

    def __call__(self) -> None:
        _load(self.source)


def loads(source: Path) -> tuple[Load, Load]:
    """All that `function` loads for a source file."""
    return Load(source), Load(compiler.SOURCES / "threads.cpp")


def get_num_threads() -> int:
    """Threads of the CPU kernels: as set, else $CODEGEMM_NUM_THREADS, else the processors this process may use."""
    if _threads is not None:
        return _threads
    asked = os.environ.get("CODEGEMM_NUM_THREADS")
    if asked:
        if not asked.isdecimal() or not 1 <= int(asked) <= MAX_THREADS:
            raise ValueError(f"CODEGEMM_NUM_THREADS={asked}: must be an integer from 1 to {MAX_THREADS}")
        return int(asked)
    return processors()


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_num_threads(k: int) -> None:
    """Let the CPU kernels use k threads from now on, 1 to 1024; results do not depend on it."""
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or not 1 <= k <= MAX_THREADS:
        raise ValueError(f"number of threads {k!r}: must be an integer from 1 to {MAX_THREADS}")
    global _threads
    with _lock:
        _threads = int(k)
        pool = _libraries.get(compiler.SOURCES / "threads.cpp")
    if pool:
        pool.codegemm_set_threads(_threads)


class _ArrayInterface(Structure):
    """NumPy's PyArrayInterface, which `__array_struct__` points to: that is there in a tenth of the time that the
    dictionary `__array_interface__` takes."""

    _fields_ = (
        ("two", c_int), ("ndim", c_int), ("typekind", c_char), ("itemsize", c_int), ("flags", c_int),
        ("shape", c_void_p), ("strides", c_void_p), ("data", c_void_p),
    )  # fmt: skip


_interface = PYFUNCTYPE(POINTER(_ArrayInterface), py_object, c_void_p)(("PyCapsule_GetPointer", ctypes.pythonapi))


def address(array: np.ndarray, needed: int = 0) -> int:
    """Where an array's data starts; 0 for one that lacks some of the flags `needed`."""
    capsule = array.__array_struct__  # which owns what is pointed to
    found = _interface(capsule, None).contents
    return found.data if found.flags & needed == needed else 0


class Workspace(NamedTuple):
    """Bytes from a boundary of 64 on, how many they are and where they begin."""

    array: np.ndarray
    size: int
    address: int


_kept: list[Workspace] = []  # as many as there were products at once; the last one is in cache


def take_workspace(size: int) -> Workspace:
    """At least so many bytes, the caller's alone until it gives them back."""
    try:
        kept = _kept.pop()
        if kept.size >= size:
            return kept
    except IndexError:
        pass
    array = empty(size, np.uint8)
    return Workspace(array, size, address(array))


def give_back(workspace: Workspace) -> None:
    """Keep it for another product, if it is not too large."""
    if workspace.size <= MAX_KEPT_BYTES:
        _kept.append(workspace)


def empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """numpy.empty from a boundary of cache lines on: of a register's load that crosses one both are read."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 63, np.uint8)
    start = -address(raw) % 64
    return raw[start : start + size].view(dtype).reshape(shape)


class Arguments:
    """The argument structure of a kernel with the weight's own fields filled in, and the arrays they point to.

    A number that isn't named is what the first owner (a spec, a configuration) has of its name. The structure must
    begin with x, out, workspace and bias (null for none) and have the fields bias_pitch (0 for one of all rows of x),
    x_dtype, out_dtype and n, which calls set: else a TypeError. ValueError for an array that isn't contiguous.
    """

    def __init__(
        self, structure: type[Structure], arrays: dict[str, np.ndarray], *owners: Any, **numbers: float
    ) -> None:
        names = [name for name, *_ in structure._fields_]
        if missing := _SET_BY_CALLS - set(names):
            raise TypeError(f"{structure.__name__}: it has no {', '.join(sorted(missing))}")
        if tuple(names[: len(_ADDRESSES)]) != _ADDRESSES:
            raise TypeError(f"{structure.__name__}: it begins with {names[:4]}, must with {', '.join(_ADDRESSES)}")
        for name, array in arrays.items():
            if not array.flags.c_contiguous:
                raise ValueError(f"{structure.__name__}: {name} with strides {array.strides}, must be contiguous")
        self.arrays = arrays
        self._numbers = declarations.owned(names, owners) | numbers
        self.filled = structure(**self._numbers | {name: address(array) for name, array in arrays.items()})

    def call(
        self, function: Any, x: np.ndarray, out: np.ndarray, workspace: np.ndarray, *more: int, bias: Any = None
    ) -> None:
        """function(arguments, *more) on a copy of the structure: several threads may multiply by one weight."""
        begin, pitch = (0, 0) if bias is None else (address(bias), bias.shape[-1] * (bias.ndim - 1))
        start = self.bound(function, len(x), x.dtype, out.dtype, *more, bias_pitch=pitch)
        start(address(x), address(out), address(workspace), begin)

    def bound(
        self, function: Any, n: int, x_dtype: np.dtype, out_dtype: np.dtype, *more: int, bias_pitch: int = 0
    ) -> Callable[..., None]:
        """`call` for n rows of these dtypes, as a function of the addresses of x, out, workspace and bias (0 for none).

        bias_pitch: from one row of the bias to the next.
        """
        filled = type(self.filled).from_buffer_copy(self.filled)
        filled.n, filled.x_dtype, filled.out_dtype = n, DTYPES[name_of(x_dtype)], DTYPES[name_of(out_dtype)]
        filled.bias_pitch = bias_pitch
        pack, rest = _pack.pack, bytes(filled)[_pack.size :]  # twice as fast as a structure of its own

        def call(x: int, out: int, workspace: int, bias: int = 0, arrays: Any = self.arrays) -> None:
            # arrays: another thread may drop the weight's meanwhile
            function(pack(x, out, workspace, bias) + rest, *more)

        return call

    def __deepcopy__(self, memo: dict[int, Any]) -> Arguments:
        arrays = {name: empty(array.shape, array.dtype) for name, array in self.arrays.items()}
        for name, array in self.arrays.items():
            arrays[name][...] = array
        return Arguments(type(self.filled), arrays, **self._numbers)


def forget() -> None:
    """Look for the compiler, its libraries and $CODEGEMM_CPU anew at the next call."""
    with _lock:
        _libraries.clear()
    function.cache_clear()
    isa.asked.cache_clear()


def _load(source: Path) -> ctypes.CDLL | None:
    with _lock:
        if source not in _libraries:
            _libraries[source] = _open(source)
        return _libraries[source]


def _open(source: Path) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(compiler.build(source)))
    except (CompilerError, OSError) as error:
        if None not in _libraries.values():
            warnings.warn(f"CPU kernels run in NumPy instead of compiled code: {error}", RuntimeWarning, stacklevel=2)
        return None
    if source.name == "threads.cpp":
        library.codegemm_set_threads.argtypes = (c_int,)
        library.codegemm_set_threads(get_num_threads())
    return library
