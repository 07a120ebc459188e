"""ExtendedWeights on the CPU: x rotated and its groups added up before the core's product, the offsets' part after."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from ctypes import c_int32, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np

from codegemm.engines.cpu import compiler, library
from codegemm.engines.extended import ExtendedKernel, around, finishes
from codegemm.formats.extended import ExtendedSpec, ExtendedWeight
from codegemm.formats.hadamard import rotate_blocks
from codegemm.formats.weight import Spec, Weight

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
    """Compiled code around the inner kernel, NumPy where there is no compiler."""

    def prepare(self, weight: Weight, device: str) -> Prepared:
        assert isinstance(weight, ExtendedWeight)
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

    def load(self, prepared: Prepared, n: int, dtype: np.dtype) -> None:
        self.inner.load(prepared.core, n, self.given(prepared.spec, n, dtype).dtype)

    def run(self, prepared: Prepared, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        spec, n = prepared.spec, len(x)
        where = self.places(spec, n, "cpu")
        x32 = _floats(workspace, where.x, (n, spec.core.in_features))
        sums = _floats(workspace, where.sums, (n, spec.groups if spec.offsets else 0))
        _before(prepared, x, x32, sums)
        given = self.given(spec, n, x.dtype)
        inner_x = x32 if given.changed or given.dtype != x.dtype else x
        if not finishes(spec, given, out.dtype):
            return self.inner.run(prepared.core, inner_x, out, workspace, stream)
        y32 = _floats(workspace, where.y, (n, spec.out_features))
        self.inner.run(prepared.core, inner_x, y32, workspace, stream)
        _after(prepared, y32, out, sums)

    def builds(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> Iterable[Callable[[], object]]:
        return (*super().builds(spec, n, dtype, device), *library.loads(_SOURCE))

    def estimate(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> float:
        assert isinstance(spec, ExtendedSpec)
        given = self.given(spec, n, dtype)
        inner = self.inner.estimate(spec.core, n, given.dtype, device)
        return inner + MULTIPLY_ADD * sum(cost.multiply_adds for cost in around(spec, n, dtype, given))


# Of what is around the inner kernel, in units of a Psumbook's lookup for one row of x; the same for all of them.
MULTIPLY_ADD = 0.06


def _floats(workspace: Any, start: int, shape: tuple[int, int]) -> Any:
    return workspace[start : start + 4 * shape[0] * shape[1]].view(np.float32).reshape(shape)


def _before(prepared: Prepared, x: Any, x32: Any, sums: Any) -> None:
    """x' and its sums over groups."""
    call = library.function(_SOURCE, "before", ExtendedArgs)
    if call is not None:
        return prepared.arguments.call(call, x, x32, sums)
    spec, factors = prepared.spec, prepared.arguments.arrays.get("factors")
    with np.errstate(over="ignore", invalid="ignore"):
        made = x.astype(np.float32)
        if factors is not None:
            made = rotate_blocks(made, np.sign(factors), spec.block)
        x32.reshape(len(x), spec.terms, -1)[...] = made[:, None]
        if spec.offsets:
            made.reshape(len(x), spec.groups, -1).sum(-1, out=sums)


def _after(prepared: Prepared, y32: Any, out: Any, sums: Any) -> None:
    """out = y' and the offsets' part."""
    call = library.function(_SOURCE, "after", ExtendedArgs)
    if call is not None:
        return prepared.arguments.call(call, y32, out, sums)
    with np.errstate(over="ignore", invalid="ignore"):
        if prepared.spec.offsets:
            y32 += sums @ prepared.arguments.arrays["addends"]
        out[...] = y32
