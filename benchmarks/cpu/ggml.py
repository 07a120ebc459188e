"""ggml's formats of about two bits, Q2_K and IQ2_XXS, and its product: what users of llama.cpp have on a CPU.

Format and kernel are registered as long as the benchmark runs. The weights are ggml's own: quantised by it, and what
is right of its products are those by what it dequantises.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cpu.libggml import FLOAT32, INSTALL, PACKAGES, installed, library
from codegemm.devices import Device
from codegemm.engines.cpu import get_num_threads
from codegemm.formats.format import Format
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel, Product

CONFIGS = ("q2_k", "iq2_xxs")
_TYPES = {"q2_k": (10, "dequantize_row_q2_K"), "iq2_xxs": (16, "dequantize_row_iq2_xxs")}  # of `enum ggml_type`
_DISTINCT_ROWS = 64  # of a random weight: quantising is slow, and to times it makes no difference that rows come again
_BLOCK_ROWS = 1024  # that are dequantised at a time
_ALIGNMENT = 256  # weights of a row are quantised by so many


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
        row_bytes: int = library().row_size(_TYPES[self.config.type][0], self.in_features)
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
        dequantize = getattr(library().base, _TYPES[self._spec.config.type][1])
        for start in range(0, len(self.packed), _BLOCK_ROWS):
            packed = self.packed[start : start + _BLOCK_ROWS]
            rows = np.empty((len(packed), self._spec.in_features), np.float32)
            dequantize(
                ctypes.c_void_p(packed.ctypes.data), ctypes.c_void_p(rows.ctypes.data), ctypes.c_int64(rows.size)
            )
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
    ggml, (number, _) = library(), _TYPES[type]
    n, columns = matrix.shape
    packed = np.empty((n, ggml.row_size(number, columns)), np.uint8)
    importance = np.ones(columns, np.float32)
    ggml.quantize(number, matrix.ctypes.data, packed.ctypes.data, 0, n, columns, importance.ctypes.data)
    return packed


class Ggml(Kernel[GgmlSpec, GgmlWeight]):
    """`ggml_mul_mat` on a backend of its own, the weight arranged as ggml arranges it for this processor. x and y are
    copied to and from its buffers. It rounds x to 8 bits."""

    name = "ggml"
    engine = "cpu"
    weights = GgmlWeight

    def unavailable(self) -> str | None:
        if installed() is None:
            return f"neither {' nor '.join(PACKAGES.values())} is installed ({INSTALL})"
        try:
            library()
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
        ggml, (number, _) = library(), _TYPES[spec.config.type]
        self._context, self._weight, self._buffer = ggml.allocated(number, spec.in_features, spec.out_features)
        ggml.set(self._weight, packed.ctypes.data, 0, packed.nbytes)

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        return Prepared(self._packed, self._spec)

    def __del__(self) -> None:
        if hasattr(self, "_buffer"):
            library().free_buffer(self._buffer)
            library().free(self._context)

    def multiply(self, x: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
        """out [n, M] = x [n, K] @ W^T with the engine's number of threads."""
        ggml = library()
        if len(x) not in self._graphs:
            self._graphs[len(x)] = _Graph(self._weight, len(x), self._spec.in_features)
        graph = self._graphs[len(x)]
        ggml.set(graph.x, x.ctypes.data, 0, x.nbytes)
        if ggml.compute(ggml.backend(get_num_threads()), graph.graph):
            raise RuntimeError("ggml's product failed")
        ggml.get(graph.y, out.ctypes.data, 0, out.nbytes)


class _Graph:
    """x, y and what computes one of the other, in ggml's memory."""

    def __init__(self, weight: int, n: int, columns: int) -> None:
        ggml = library()
        self._context = ggml.context()
        self.x = ggml.tensor(self._context, FLOAT32, columns, n)
        self.y = ggml.mul_mat(self._context, weight, self.x)
        self.graph = ggml.new_graph(self._context)
        ggml.expand(self.graph, self.y)
        self._buffer = ggml.allocate(self._context, ggml.plain_memory())

    def __del__(self) -> None:
        if hasattr(self, "_buffer"):
            library().free_buffer(self._buffer)
            library().free(self._context)


GGML_FORMAT, GGML = GgmlFormat(), Ggml()
