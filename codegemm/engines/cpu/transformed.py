"""TransformedWeights on the CPU: x rotated and its groups added up before the core's product.

What the offsets add to y is there before that, too, as a bias for each row of x: so the inner kernel sees how large y
comes out, by which it judges its own error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from codegemm import operands
from codegemm.devices import CPU, Device
from codegemm.engines import declarations, limits
from codegemm.engines.cpu import compiler, costs, kernel, library
from codegemm.engines.cpu.costs import Work
from codegemm.engines.cpu.kernel import CpuKernel
from codegemm.engines.transformed import FLOAT32, TransformedKernel, arrays_around, changes_x, finishes, inner_product
from codegemm.formats.rotation import Rotation
from codegemm.formats.transformed import TransformedSpec, TransformedWeight
from codegemm.kernel import Cost, Product

_SOURCE = compiler.SOURCES / "transformed.cpp"
_FUNCTIONS = ("before", "add_offsets", "after")
_ALIGNED = 256
TransformedArgs = declarations.structure(_SOURCE, "TransformedArgs")


@dataclass
class Prepared(kernel.Prepared[TransformedSpec]):
    """The core in the inner kernel's form, and `arrays_around` it."""

    core: Any


class CpuTransformed(TransformedKernel):
    """Compiled code around the inner kernel, NumPy where there is no compiler.

    In the workspace, behind the inner kernel's part: in float32 x' [n, terms * K], y' [n, M], what is added to that
    [n, M] and sums [n, K/g].
    """

    adds_bias = True

    def refuses(self, product: Product[TransformedSpec], device: Device) -> str | None:
        return limits.beyond(product) or self.inner.refuses(inner_product(self.apart(product)), device)

    def prepare(self, weight: TransformedWeight, device: Device) -> Prepared:
        weight = self.core_and_around(weight)
        spec = weight.spec
        arguments = library.Arguments(TransformedArgs, arrays_around(weight), spec, rows=spec.out_features)
        return Prepared(spec, arguments, self.inner.prepare(weight.core, device))

    def inside(self, prepared: Prepared) -> Any:
        return prepared.core

    def load(self, prepared: Prepared, product: Product[TransformedSpec]) -> None:
        self.inner.load(prepared.core, inner_product(self.apart(product)))

    def run(self, prepared: Prepared, x: Any, out: Any, workspace: Any, stream: Any, bias: Any = None) -> None:
        spec, n = prepared.spec, len(x)
        product = Product(spec, n, x.dtype, out.dtype)
        places = zip(self._columns(spec), self._places(product, CPU))
        x32, y32, addends, sums = (np.ndarray((n, k), np.float32, workspace, begin) for k, begin in places)
        _before(prepared, x, x32, sums)
        if spec.offsets:
            _add_offsets(prepared, x32, sums, bias, addends)
            bias = addends
        inner_x = x32 if changes_x(spec) or inner_product(product).dtype != x.dtype else x
        added = (bias,) if bias is not None and self.inner.adds_bias else ()
        later = None if added else bias
        # Kernels know x's dtype and float32 for y.
        y = out if later is None and out.dtype in (inner_x.dtype, np.float32) else y32
        self.inner.run(prepared.core, inner_x, y, workspace, stream, *added)
        if y is not out:
            _after(prepared, y, out, sums, later)

    def bound(self, prepared: Prepared, product: Product[TransformedSpec]) -> Callable[..., None] | None:
        """`run` as of `CpuKernel.bound`: calls of compiled code alone, if the inner product is one."""
        before, add_offsets, after = (library.function(_SOURCE, name, TransformedArgs) for name in _FUNCTIONS)
        if before is None or not isinstance(self.inner, CpuKernel):
            return None
        product = self.apart(product)
        spec, n, (m, _) = product.spec, product.n, product.spec.shape
        core = inner_product(product)
        is_finished = product.out_dtype in (core.dtype, FLOAT32)
        core = replace(core, out_dtype=product.out_dtype if is_finished else FLOAT32)
        multiply = self.inner.bound(prepared.core, core, m if spec.offsets else 0)
        if multiply is None:
            return None
        bound = prepared.arguments.bound
        change = bound(before, n, product.dtype, FLOAT32)
        offset = bound(add_offsets, n, FLOAT32, FLOAT32) if spec.offsets else None
        finish = None if is_finished else bound(after, n, FLOAT32, product.out_dtype)
        to_x, to_y, to_addends, to_sums, _ = self._places(product, CPU)
        is_changed = changes_x(spec) or core.dtype != product.dtype

        def run(x: int, out: int, workspace: int, bias: int = 0) -> None:
            x32, y32, sums = workspace + to_x, workspace + to_y, workspace + to_sums
            change(x, x32, sums)
            if offset is not None:
                offset(x32, workspace + to_addends, sums, bias)
                bias = workspace + to_addends
            multiply(x32 if is_changed else x, out if finish is None else y32, workspace, bias)
            if finish is not None:
                finish(y32, out, sums)

        return run

    def workspace(self, product: Product[TransformedSpec], device: Device) -> int:
        return self._places(self.apart(product), device)[-1]

    def builds(self, product: Product[TransformedSpec], device: Device) -> Iterable[Callable[[], object]]:
        return (*self.inner.builds(inner_product(self.apart(product)), device), *library.loads(_SOURCE))

    def cost(self, product: Product[TransformedSpec], device: Device) -> Cost:
        product = self.apart(product)
        spec, n, (m, k) = product.spec, product.n, product.spec.shape
        inner = inner_product(product)
        cost = self.inner.cost(inner, device)
        groups, finished = _groups(spec), finishes(product, inner.dtype)
        before = n * (4 * groups + (4 * spec.core.in_features if changes_x(spec) else 0))
        tables = 4 * k * (bool(spec.block) + spec.ordered)
        read = product.x_bytes + tables + (4 * (n * m + groups * (n + m)) if finished else 0)
        written = before + (product.y_bytes if finished else 0)
        return Cost(cost.bytes_read + read, cost.bytes_written + written, cost.multiply_adds, cost.lookups)

    def estimate(self, product: Product[TransformedSpec], device: Device) -> float:
        return self.inner.estimate(self.core_product(product), device) + (costs.seconds(self.around(product)) or 0)

    def core_product(self, product: Product[TransformedSpec]) -> Product:
        """The inner kernel's."""
        return inner_product(self.apart(product))

    def around(self, product: Product[TransformedSpec]) -> Work:
        """What there is to do beside it: multiply-adds, and elements that an order moves."""
        product = self.apart(product)
        spec, n, (m, k) = product.spec, product.n, product.spec.shape
        groups = _groups(spec)
        adds = k * (max(spec.block.bit_length() - 1, 0) + spec.ordered) + (k + m * groups if groups else 0)
        return Work("around", {"add": n * adds})

    def _places(self, product: Product[TransformedSpec], device: Device) -> list[int]:
        """Where x', y', what is added to it and the sums begin in the workspace, and where those end."""
        inner_bytes = self.inner.workspace(inner_product(product), device)
        sizes = (inner_bytes, *(4 * product.n * each for each in self._columns(product.spec)))
        return list(itertools.accumulate(-(-size // _ALIGNED) * _ALIGNED for size in sizes))

    def _columns(self, spec: TransformedSpec) -> tuple[int, ...]:
        """Of x', y', what is added to it and the sums."""
        return spec.core.in_features, spec.out_features, spec.out_features if spec.offsets else 0, _groups(spec)


def _groups(spec: TransformedSpec) -> int:
    """Whose sums are needed."""
    return spec.groups if spec.offsets else 0


def _before(prepared: Prepared, x: Any, x32: Any, sums: Any) -> None:
    """x' and its sums over groups."""
    call = library.function(_SOURCE, "before", TransformedArgs)
    if call is not None:
        return prepared.arguments.call(call, x, x32, sums)
    spec, (factors, order) = prepared.spec, map(prepared.arguments.arrays.get, ("factors", "order"))
    with np.errstate(over="ignore", invalid="ignore"):
        rotated = x.astype(np.float32)
        if order is not None:
            rotated = rotated[:, order]
        if factors is not None:
            rotated = Rotation(np.sign(factors), spec.block).rotate(rotated)
        x32.reshape(len(x), spec.terms, -1)[...] = rotated[:, None]
        if spec.offsets:
            rotated.reshape(len(x), spec.groups, -1).sum(-1, out=sums)


def _add_offsets(prepared: Prepared, x32: Any, sums: Any, bias: Any, addends: Any) -> None:
    """addends = the offsets' part of y and the bias."""
    call = library.function(_SOURCE, "add_offsets", TransformedArgs)
    if call is not None:
        return prepared.arguments.call(call, x32, addends, sums, bias=bias)
    with np.errstate(over="ignore", invalid="ignore"):
        np.matmul(sums, prepared.arguments.arrays["addends"], out=addends)
        if bias is not None:
            addends += bias


def _after(prepared: Prepared, y32: Any, out: Any, sums: Any, bias: Any) -> None:
    """out = y' and the bias."""
    call = library.function(_SOURCE, "after", TransformedArgs)
    if call is not None:
        return prepared.arguments.call(call, y32, out, sums, bias=bias)
    operands.add_bias(y32, 0 if bias is None else bias, out)
