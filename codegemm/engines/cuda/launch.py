"""Steps bound to a GPU: compiled, loaded, their arguments filled in, so that a call only starts them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np

from codegemm import devices
from codegemm.devices import Device
from codegemm.engines.cuda import gemm, library
from codegemm.engines.cuda.dependent import DependentKernel
from codegemm.engines.cuda.steps import Array, Gemm, Launch, Number, Place, Step, Structure, Table
from codegemm.kernel import S

# What a product is once everything is decided: a function of x, out, workspace, stream and, where it has one, a bias.
Run = Callable[..., None]


@dataclass
class Prepared(Generic[S]):
    """A weight in a kernel's order where its arrays are, and what was bound so far.

    arrays: NumPy's or CuPy's, by name, and tables once they were needed. numbers: what else kernels take of the weight.
    runs: by rows, dtype of x and of y, and whether there is a bias.
    """

    spec: S
    device: Device
    arrays: dict[Any, Any]
    numbers: dict[str, float] = field(default_factory=dict)
    runs: dict[tuple[int, np.dtype, np.dtype, bool], Run] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        return Prepared(self.spec, self.device, copy.deepcopy(self.arrays, memo), dict(self.numbers))

    def table(self, table: Table) -> Any:
        """Beside the weight's arrays, and kept with them."""
        if table not in self.arrays:
            self.arrays.setdefault(table, devices.move(table.make(*table.values), self.device))
        return self.arrays[table]


def filled(argument: Any, prepared: Prepared) -> Any:
    """An argument with the weight's addresses and numbers in it: a number or structure of NumPy's."""
    if isinstance(argument, Structure):
        return np.array(tuple(filled(value, prepared) for value in argument.values), argument.dtype)
    if isinstance(argument, Array):
        return np.uint64(address(prepared.arrays[argument.name][argument.row :]))
    if isinstance(argument, Number):
        return prepared.numbers[argument.name]
    if isinstance(argument, Table):
        return np.uint64(address(prepared.table(argument)))
    return np.int64(argument.start) if isinstance(argument, Place) else argument


def address(array: Any) -> int:
    """Where an array's data starts."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def bind(steps: tuple[Step, ...], prepared: Prepared) -> Run:
    """Steps as one function, their kernels compiled and loaded."""
    bound = tuple(_launch(step, prepared) if isinstance(step, Launch) else _gemm(step, prepared) for step in steps)
    return bound[0] if len(bound) == 1 else Sequence(bound)


@dataclass(frozen=True)
class Sequence:
    """Several, one after the other."""

    each: tuple[Run, ...]

    def __call__(self, x: Any, out: Any, workspace: Any, stream: Any, bias: Any = None) -> None:
        """Start them."""
        for run in self.each:
            run(x, out, workspace, stream, bias)


@dataclass(frozen=True)
class BoundLaunch:
    """A launch of a loaded kernel, whose last arguments are `constants`."""

    function: Any
    grid: tuple[int, ...]
    block: tuple[int]
    shared_bytes: int
    cluster: int
    constants: tuple[Any, ...]
    x: Place | None
    y: Place | None
    takes_bias: bool
    held: Any  # arrays that the constants point to
    dependent: Run | None  # the same, where the kernel may start early

    def __call__(self, x: Any, out: Any, workspace: Any, stream: Any, bias: Any = None) -> None:
        """Start it."""
        if self.x is not None:
            x = workspace[self.x.start :]
        elif self.takes_bias:
            x = bias
        if self.y is not None:
            out = workspace[self.y.start :]
        if self.dependent is not None:
            self.dependent(x, out, workspace, stream)
            return
        self.function(
            self.grid, self.block, (x, out, workspace, *self.constants), shared_mem=self.shared_bytes, stream=stream
        )


@dataclass(frozen=True)
class BoundGemm:
    """A library's product with a dense array, of the workspace or the prepared weight."""

    step: Gemm
    dense: Any

    def __call__(self, x: Any, out: Any, workspace: Any, stream: Any, bias: Any = None) -> None:
        """Start it."""
        step = self.step
        x = x if step.x is None else step.x.of(workspace)
        out = out if step.y is None else step.y.of(workspace)
        dense = step.dense.of(workspace) if isinstance(step.dense, Place) else self.dense
        gemm.multiply(x, dense, out, step.first, stream)


def _launch(step: Launch, prepared: Prepared) -> BoundLaunch:
    constants = tuple(library.constant(filled(argument, prepared)) for argument in step.arguments)
    function = library.function(step.source, step.instance, prepared.device, step.dependent)
    how = step.grid, (step.threads,), step.shared_bytes, step.cluster, constants
    dependent = function.bound(*how) if isinstance(function, DependentKernel) else None
    return BoundLaunch(function, *how, step.x, step.y, step.takes_bias, tuple(prepared.arrays.values()), dependent)


def _gemm(step: Gemm, prepared: Prepared) -> BoundGemm:
    gemm.load()
    return BoundGemm(step, prepared.arrays[step.dense.name] if isinstance(step.dense, Array) else None)
