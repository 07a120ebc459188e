"""ggml's formats of about two bits, Q2_K and IQ2_XXS, and its product: what users of llama.cpp have on a CPU.

Format and kernel are registered as long as the benchmark runs. The weights are ggml's own: quantised by it, and what
is right of its products are those by what it dequantises.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.devices import Device
from codegemm.engines.cpu import get_num_threads
from codegemm.formats.format import Format
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel, Product

# The former compiles it for the processor that it is installed on, which takes minutes.
INSTALL = "pip install llama-cpp-python, or libggml-python, which is compiled for AVX2"
CONFIGS = ("q2_k", "iq2_xxs")
# The packages that have its libraries, and where; one that was compiled here before one that was not.
_FOLDERS = {"llama_cpp": "lib", "libggml": "lib64"}
_DISTRIBUTIONS = {"llama_cpp": "llama-cpp-python", "libggml": "libggml-python"}
_TYPES = {"q2_k": (10, "dequantize_row_q2_K"), "iq2_xxs": (16, "dequantize_row_iq2_xxs")}  # of `enum ggml_type`
_FLOAT32 = 0
_INSTRUCTIONS = ("amx_int8", "avx512_bf16", "avx512_vnni", "avx512_vbmi", "avx512", "avx2", "avx", "neon")
_DISTINCT_ROWS = 64  # of a random weight: quantising is slow, and to times it makes no difference that rows come again
_BLOCK_ROWS = 1024  # that are dequantised at a time
_ALIGNMENT = 256  # weights of a row are quantised by so many
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t


@dataclass(frozen=True)
class GgmlConfig:
    """One of ggml's types by its name in lower case."""

    type: str

    def __str__(self) -> str:
        return self.type


@dataclass(frozen=True)
class GgmlSpec(Spec):
    """Of rows in blocks as ggml packs them."""

    config: GgmlConfig

    @property
    def packed_bits(self) -> int:
        row_bytes: int = libraries().row_size(_TYPES[self.config.type][0], self.in_features)
        return 8 * row_bytes * self.out_features


class GgmlWeight(Weight):
    """packed: uint8 [out_features, bytes of a row]."""

    format_name = "ggml"
    spec_type = GgmlSpec
    tensor_names = ("packed",)

    def __init__(self, packed: npt.NDArray[np.uint8], type: str, in_features: int) -> None:
        self.packed, self._spec = packed, GgmlSpec(len(packed), in_features, GgmlConfig(type))

    @property
    def spec(self) -> GgmlSpec:
        return self._spec

    @property
    def options(self) -> dict[str, Any]:
        return {"type": self._spec.config.type, "in_features": self._spec.in_features}

    def core_blocks(self, dtype: np.dtype) -> Iterator[tuple[int, npt.NDArray]]:
        dequantize = getattr(libraries().base, _TYPES[self._spec.config.type][1])
        for start in range(0, len(self.packed), _BLOCK_ROWS):
            packed = self.packed[start : start + _BLOCK_ROWS]
            rows = np.empty((len(packed), self._spec.in_features), np.float32)
            dequantize(_POINTER(packed.ctypes.data), _POINTER(rows.ctypes.data), ctypes.c_int64(rows.size))
            yield start, rows.astype(dtype, copy=False)


class GgmlFormat(Format[GgmlConfig, GgmlSpec, GgmlWeight]):
    """Its types of about two bits."""

    config, weight = GgmlConfig, GgmlWeight
    syntax, examples = "|".join(CONFIGS), CONFIGS

    def parse(self, text: str) -> GgmlConfig | None:
        return GgmlConfig(text) if text in _TYPES else None

    def spec(self, shape: tuple[int, int], config: GgmlConfig) -> GgmlSpec:
        if shape[1] % _ALIGNMENT:
            raise ValueError(f"in_features={shape[1]}: must be a multiple of {_ALIGNMENT}")
        return GgmlSpec(*shape, config)

    def random(self, spec: GgmlSpec, seed: int) -> GgmlWeight:
        rng = np.random.default_rng((seed, *spec.shape))  # not what x is made by
        distinct = quantized(rng.standard_normal((_DISTINCT_ROWS, spec.in_features), np.float32), spec.config.type)
        rows = rng.integers(_DISTINCT_ROWS, size=spec.out_features)
        return GgmlWeight(distinct[rows], spec.config.type, spec.in_features)


def quantized(matrix: npt.NDArray[np.float32], type: str) -> npt.NDArray[np.uint8]:
    """Rows [n, K] as ggml's own quantiser packs them, every column as important as the others."""
    library, (number, _) = libraries(), _TYPES[type]
    n, columns = matrix.shape
    packed = np.empty((n, library.row_size(number, columns)), np.uint8)
    importance = np.ones(columns, np.float32)
    library.quantize(number, matrix.ctypes.data, packed.ctypes.data, 0, n, columns, importance.ctypes.data)
    return packed


class Ggml(Kernel[GgmlSpec, GgmlWeight]):
    """`ggml_mul_mat` on a backend of its own, the weight arranged as ggml arranges it for this processor. x and y are
    copied to and from its buffers. It rounds x to 8 bits."""

    name = "ggml"
    engine = "cpu"
    weights = GgmlWeight

    def unavailable(self) -> str | None:
        if _installed() is None:
            return f"neither {' nor '.join(_DISTRIBUTIONS.values())} is installed ({INSTALL})"
        try:
            libraries()
        except (OSError, AttributeError) as error:  # another version of somebody else's library
            return f"ggml can't be loaded: {error}"
        return None

    def tolerance(self, product: Product[GgmlSpec]) -> float:
        return 3e-2

    def refuses(self, product: Product[GgmlSpec], device: Device) -> str | None:
        return None if product.dtype == np.float32 else f"x of {product.dtype}: it multiplies float32"

    def prepare(self, weight: GgmlWeight, device: Device) -> Prepared:
        return Prepared(weight.packed, weight.spec)

    def run(self, prepared: Prepared, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        prepared.multiply(x, out)

    def cost(self, product: Product[GgmlSpec], device: Device) -> Cost:
        return Cost(product.spec.packed_bits // 8 + product.x_bytes, product.y_bytes, product.multiply_adds)


class Prepared:
    """A weight in ggml's memory, and for each number of rows the graph of one product."""

    def __init__(self, packed: npt.NDArray[np.uint8], spec: GgmlSpec) -> None:
        self._packed, self._spec, self._graphs = packed, spec, dict[int, _Graph]()
        library, (number, _) = libraries(), _TYPES[spec.config.type]
        self._context, self._weight, self._buffer = library.allocated(number, spec.in_features, spec.out_features)
        library.set(self._weight, packed.ctypes.data, 0, packed.nbytes)

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        return Prepared(self._packed, self._spec)

    def __del__(self) -> None:
        if hasattr(self, "_buffer"):
            libraries().free_buffer(self._buffer)
            libraries().free(self._context)

    def multiply(self, x: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
        """out [n, M] = x [n, K] @ W^T with the engine's number of threads."""
        library = libraries()
        if len(x) not in self._graphs:
            self._graphs[len(x)] = _Graph(self._weight, len(x), self._spec.in_features)
        graph = self._graphs[len(x)]
        library.set(graph.x, x.ctypes.data, 0, x.nbytes)
        if library.compute(library.backend(get_num_threads()), graph.graph):
            raise RuntimeError("ggml's product failed")
        library.get(graph.y, out.ctypes.data, 0, out.nbytes)


class _Graph:
    """x, y and what computes one of the other, in ggml's memory."""

    def __init__(self, weight: int, n: int, columns: int) -> None:
        library = libraries()
        self._context = library.context()
        self.x = library.tensor(self._context, _FLOAT32, columns, n)
        self.y = library.mul_mat(self._context, weight, self.x)
        self.graph = library.new_graph(self._context)
        library.expand(self.graph, self.y)
        self._buffer = library.allocate(self._context, library.plain_memory())

    def __del__(self) -> None:
        if hasattr(self, "_buffer"):
            libraries().free_buffer(self._buffer)
            libraries().free(self._context)


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", _SIZE), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool))


class _ThreadpoolParams(ctypes.Structure):
    _fields_ = (
        ("cpumask", ctypes.c_bool * 512), ("n_threads", ctypes.c_int), ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32), ("strict_cpu", ctypes.c_bool), ("paused", ctypes.c_bool),
    )  # fmt: skip


class Libraries:
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
            if self._supports(self._device, self.mul_mat(context, weight, self.tensor(context, _FLOAT32, columns, 1))):
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
def libraries() -> Libraries:
    """Of the package that is installed; OSError or AttributeError where it has others."""
    found = _installed()
    if found is None:
        raise OSError(INSTALL)
    return Libraries(found[1])


def version() -> str:
    """ggml's, which package has it, and for which instructions it was compiled."""
    [package, _], library = _installed() or ("", Path()), libraries()
    return f"{library.version().decode()} ({_DISTRIBUTIONS[package]}, {library.instructions()})"


def _installed() -> tuple[str, Path] | None:
    """A package with the libraries, and their folder."""
    for package, folder in _FOLDERS.items():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(place) / folder / "libggml-cpu.so").is_file():
                return package, Path(place) / folder
    return None


GGML_FORMAT, GGML = GgmlFormat(), Ggml()
