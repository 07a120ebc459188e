"""ExtendedWeights on the CPU: x rotated and its groups added up before the core's product, the offsets' part after."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from ctypes import c_int32, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np

from codegemm.devices import CPU, Device
from codegemm.engines.cpu import compiler, library
from codegemm.engines.cpu.kernel import LOOKUP_SECONDS
from codegemm.engines.extended import ExtendedKernel, changes_x, finishes, inner_product
from codegemm.formats.extended import ExtendedSpec, ExtendedWeight
from codegemm.formats.hadamard import rotate_blocks
from codegemm.kernel import Cost, Product

_SOURCE = compiler.SOURCES / "extended.cpp"


class ExtendedArgs(ctypes.Structure):
    """Must match `ExtendedArgs` in extended.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "out", "workspace", "factors", "addends")),
        *((name, c_int32) for name in ("x_dtype", "out_dtype", "n", "rows", "in_features")),
        *((name, c_int32) for name in ("block", "terms", "groups")),
    ]


@dataclass
class Prepared:
    """The core in the inner kernel's form and, in float32, signs over the root of the block [K], addends [K/g, M]."""

    spec: ExtendedSpec
    core: Any
    arguments: library.Arguments


class CpuExtended(ExtendedKernel):
    """Compiled code around the inner kernel, NumPy where there is no compiler.

    In the workspace, behind the inner kernel's part: in float32 x' [n, terms * K], y' [n, M] and sums [n, K/g].
    """

    def refuses(self, product: Product[ExtendedSpec], device: Device) -> str | None:
        return self.inner.refuses(inner_product(product), device)

    def prepare(self, weight: ExtendedWeight, device: Device) -> Prepared:
        spec, arrays = weight.spec, {}
        if spec.block:
            arrays["factors"] = (weight.signs / np.sqrt(spec.block)).astype(np.float32)
        if spec.offsets:
            arrays["addends"] = np.ascontiguousarray(weight.addends(np.float32).T)
        arguments = library.Arguments(
            ExtendedArgs,
            arrays,
            rows=spec.out_features,
            in_features=spec.in_features,
            block=spec.block,
            terms=spec.terms,
            groups=spec.groups,
        )
        return Prepared(spec, self.inner.prepare(weight.core, device), arguments)

    def load(self, prepared: Prepared, product: Product[ExtendedSpec]) -> None:
        self.inner.load(prepared.core, inner_product(product))

    def run(self, prepared: Prepared, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        spec, n = prepared.spec, len(x)
        product = Product(spec, n, x.dtype, out.dtype)
        inner = inner_product(product)
        begin = self._behind(inner, CPU)
        x32, begin = _floats(workspace, begin, (n, spec.core.in_features))
        y32, begin = _floats(workspace, begin, (n, spec.out_features))
        sums, _ = _floats(workspace, begin, (n, _groups(spec)))
        _before(prepared, x, x32, sums)
        inner_x = x32 if changes_x(spec) or inner.dtype != x.dtype else x
        if not finishes(product, inner.dtype):
            return self.inner.run(prepared.core, inner_x, out, workspace, stream)
        self.inner.run(prepared.core, inner_x, y32, workspace, stream)
        _after(prepared, y32, out, sums)

    def workspace(self, product: Product[ExtendedSpec], device: Device) -> int:
        spec, n = product.spec, product.n
        sizes = (spec.core.in_features, spec.out_features, _groups(spec))
        return self._behind(inner_product(product), device) + sum(_aligned(4 * n * size) for size in sizes)

    def builds(self, product: Product[ExtendedSpec], device: Device) -> Iterable[Callable[[], object]]:
        return (*self.inner.builds(inner_product(product), device), *library.loads(_SOURCE))

    def cost(self, product: Product[ExtendedSpec], device: Device) -> Cost:
        spec, n, (m, k) = product.spec, product.n, product.spec.shape
        inner = inner_product(product)
        cost = self.inner.cost(inner, device)
        groups, finished = _groups(spec), finishes(product, inner.dtype)
        before = n * (4 * groups + (4 * spec.core.in_features if changes_x(spec) else 0))
        read = product.x_bytes + (4 * k if spec.block else 0) + (4 * (n * m + groups * (n + m)) if finished else 0)
        return Cost(cost.bytes_read + read, cost.bytes_written + before + (product.y_bytes if finished else 0))

    def estimate(self, product: Product[ExtendedSpec], device: Device) -> float:
        spec, n, (m, k) = product.spec, product.n, product.spec.shape
        groups, inner = _groups(spec), inner_product(product)
        adds = k * max(spec.block.bit_length() - 1, 0) + (k + m * groups if groups else 0)
        return self.inner.estimate(inner, device) + LOOKUP_SECONDS * MULTIPLY_ADD * n * adds

    def _behind(self, inner: Product, device: Device) -> int:
        """Bytes of the inner kernel's part, whatever y's dtype."""
        return _aligned(self.inner.workspace(inner, device))


# Of what is around the inner kernel, in units of a Psumbook's lookup for one row of x; the same for all of them.
MULTIPLY_ADD = 0.06


def _groups(spec: ExtendedSpec) -> int:
    """Whose sums are needed."""
    return spec.groups if spec.offsets else 0


def _floats(workspace: Any, begin: int, shape: tuple[int, int]) -> tuple[Any, int]:
    """An array in the workspace, and where the next may begin."""
    size = 4 * shape[0] * shape[1]
    return workspace[begin : begin + size].view(np.float32).reshape(shape), begin + _aligned(size)


def _aligned(size: int) -> int:
    return -(-size // 256) * 256


def _before(prepared: Prepared, x: Any, x32: Any, sums: Any) -> None:
    """x' and its sums over groups."""
    call = library.function(_SOURCE, "before", ExtendedArgs)
    if call is not None:
        return prepared.arguments.call(call, x, x32, sums)
    spec, factors = prepared.spec, prepared.arguments.arrays.get("factors")
    with np.errstate(over="ignore", invalid="ignore"):
        rotated = x.astype(np.float32)
        if factors is not None:
            rotated = rotate_blocks(rotated, np.sign(factors), spec.block)
        x32.reshape(len(x), spec.terms, -1)[...] = rotated[:, None]
        if spec.offsets:
            rotated.reshape(len(x), spec.groups, -1).sum(-1, out=sums)


def _after(prepared: Prepared, y32: Any, out: Any, sums: Any) -> None:
    """out = y' and the offsets' part."""
    call = library.function(_SOURCE, "after", ExtendedArgs)
    if call is not None:
        return prepared.arguments.call(call, y32, out, sums)
    with np.errstate(over="ignore", invalid="ignore"):
        if prepared.spec.offsets:
            y32 += sums @ prepared.arguments.arrays["addends"]
        out[...] = y32
