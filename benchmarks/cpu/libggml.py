"""ggml's libraries, as packages bring them, and of their functions those that a product takes."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

# The former is compiled for the processor that it is installed on, which takes minutes.
INSTALL = "pip install llama-cpp-python, or libggml-python, which is compiled for AVX2"
PACKAGES = {"llama_cpp": "llama-cpp-python", "libggml": "libggml-python"}  # the first that is there
_FOLDERS = {"llama_cpp": "lib", "libggml": "lib64"}
_INSTRUCTIONS = ("amx_int8", "avx512_bf16", "avx512_vnni", "avx512_vbmi", "avx512", "avx2", "avx", "neon")
FLOAT32 = 0  # of `enum ggml_type`
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", _SIZE), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool))


class _ThreadpoolParams(ctypes.Structure):
    _fields_ = (
        ("cpumask", ctypes.c_bool * 512), ("n_threads", ctypes.c_int), ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32), ("strict_cpu", ctypes.c_bool), ("paused", ctypes.c_bool),
    )  # fmt: skip


class Library:
    """The functions of ggml that a product takes."""

    def __init__(self, folder: Path) -> None:
        # The processor's library finds the other one by its name.
        self.base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"))
        base, integer, long = self.base, ctypes.c_int, ctypes.c_int64
        self.version = _function(base.ggml_version, ctypes.c_char_p)
        self.row_size = _function(base.ggml_row_size, _SIZE, integer, long)
        self.quantize = _function(base.ggml_quantize_chunk, _SIZE, integer, *2 * [_POINTER], *3 * [long], _POINTER)
        self._init = _function(base.ggml_init, _POINTER, _InitParams)
        self.free = _function(base.ggml_free, None, _POINTER)
        self.tensor = _function(base.ggml_new_tensor_2d, _POINTER, _POINTER, integer, long, long)
        self.mul_mat = _function(base.ggml_mul_mat, _POINTER, *3 * [_POINTER])
        self.new_graph = _function(base.ggml_new_graph, _POINTER, _POINTER)
        self.expand = _function(base.ggml_build_forward_expand, None, *2 * [_POINTER])
        self.set = _function(base.ggml_backend_tensor_set, None, *2 * [_POINTER], *2 * [_SIZE])
        self.get = _function(base.ggml_backend_tensor_get, None, *2 * [_POINTER], *2 * [_SIZE])
        self.allocate = _function(base.ggml_backend_alloc_ctx_tensors_from_buft, _POINTER, *2 * [_POINTER])
        self.free_buffer = _function(base.ggml_backend_buffer_free, None, _POINTER)
        self.compute = _function(base.ggml_backend_graph_compute, integer, *2 * [_POINTER])
        self.plain_memory = _function(base.ggml_backend_cpu_buffer_type, _POINTER)
        self._supports = _function(base.ggml_backend_dev_supports_op, ctypes.c_bool, *2 * [_POINTER])
        self._graph_overhead = _function(base.ggml_graph_overhead, _SIZE)
        self._tensor_overhead = _function(base.ggml_tensor_overhead, _SIZE)
        registry = _function(self.cpu.ggml_backend_cpu_reg, _POINTER)()
        self._device = _function(base.ggml_backend_reg_dev_get, _POINTER, _POINTER, _SIZE)(registry, 0)
        self._address = partial(
            _function(base.ggml_backend_reg_get_proc_address, _POINTER, _POINTER, ctypes.c_char_p), registry
        )
        self._backends: dict[int, int] = {}
        self._silence = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, _POINTER)(lambda *_: None)
        base.ggml_log_set(self._silence, None)  # it tells of each weight that it arranges

    def context(self) -> int:
        """One for the descriptions of a few tensors and a graph."""
        size = self._graph_overhead() + 8 * self._tensor_overhead()
        context: int = self._init(_InitParams(size, None, True))
        return context

    def allocated(self, number: int, columns: int, rows: int) -> tuple[int, int, int]:
        """A context, a weight of that type and its buffer: of the kinds of memory that ggml has for this processor, in
        which it arranges weights anew, the first that it can multiply from, as llama.cpp goes by."""
        for memory in (*self._own_memories(), self.plain_memory()):
            context = self.context()
            weight = self.tensor(context, number, columns, rows)
            buffer = self.allocate(context, memory)
            # x of the product that is asked for is nowhere yet.
            if self._supports(self._device, self.mul_mat(context, weight, self.tensor(context, FLOAT32, columns, 1))):
                return context, weight, buffer
            self.free_buffer(buffer)
            self.free(context)
        raise ValueError(f"ggml can't multiply by its type {number}")

    def _own_memories(self) -> Iterator[int]:
        address = self._address(b"ggml_backend_dev_get_extra_bufts")
        if address:
            memories = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)(address)(self._device)
            yield from itertools.takewhile(bool, memories)

    def backend(self, threads: int) -> int:
        """What computes with so many threads, which stay."""
        if threads not in self._backends:
            backend = _function(self.cpu.ggml_backend_cpu_init, _POINTER)()
            _function(self.cpu.ggml_backend_cpu_set_n_threads, None, _POINTER, ctypes.c_int)(backend, threads)
            # Without OpenMP each product would start threads of its own. That they don't poll for the next costs
            # microseconds of it, and nothing of what others do meanwhile.
            chosen = _function(self.base.ggml_threadpool_params_default, _ThreadpoolParams, ctypes.c_int)(threads)
            chosen.poll = 0
            pool = _function(self.cpu.ggml_threadpool_new, _POINTER, _POINTER)(ctypes.byref(chosen))
            _function(self.cpu.ggml_backend_cpu_set_threadpool, None, *2 * [_POINTER])(backend, pool)
            self._backends[threads] = backend
        return self._backends[threads]

    def instructions(self) -> str:
        """For which it was compiled, the best of them."""
        has = [name for name in _INSTRUCTIONS if getattr(self.cpu, f"ggml_cpu_has_{name}", int)()]
        return has[0] if has else "no vectors"


def _function(symbol: Any, result: Any, *arguments: Any) -> Any:
    symbol.restype, symbol.argtypes = result, arguments
    return symbol


@cache
def library() -> Library:
    """Of the package that is installed; OSError or AttributeError where it has others."""
    found = installed()
    if found is None:
        raise OSError(INSTALL)
    return Library(found[1])


def version() -> str:
    """ggml's, which package has it, and for which instructions it was compiled."""
    ggml, [package, _] = library(), installed() or ("", None)
    return f"{ggml.version().decode()} ({PACKAGES[package]}, {ggml.instructions()})"


def installed() -> tuple[str, Path] | None:
    """A package with the libraries, and their folder."""
    for package, folder in _FOLDERS.items():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(place) / folder / "libggml-cpu.so").is_file():
                return package, Path(place) / folder
    return None
