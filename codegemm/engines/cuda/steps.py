"""What a product does on a GPU, as data: its launches and the library's products, and their places in the workspace.

Nothing here has an array or a device: the same steps are launched, emulated, compiled beforehand, counted and
predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import kernels_cu
from codegemm.engines.cuda.model import Work
from codegemm.engines.declarations import owned

X_TYPES = {"float16": "Half", "bfloat16": "Bfloat", "float32": "Float"}  # classes in floats.cuh
# At a workspace's start: zero before and after every kernel.
COUNTER_BYTES = 4 * kernels_cu.constant("splits.cuh", "most_row_blocks")
_ALIGNED = 256


def instance(template: str, *arguments: Any) -> str:
    """A template's instance, like psumbook<4, Half, true>: dtypes are x's classes, all else as C++ writes it."""

    def text(argument: Any) -> str:
        if isinstance(argument, np.dtype):
            return X_TYPES[argument.name]
        return str(argument).lower() if isinstance(argument, bool) else str(argument)

    return f"{template}<{', '.join(map(text, arguments))}>"


@dataclass(frozen=True)
class Place:
    """An array in the workspace; in a structure, its first byte."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its size."""
        return prod(self.shape) * self.dtype.itemsize

    def of(self, workspace: Any) -> Any:
        """It, in a workspace."""
        return workspace[self.start : self.start + self.nbytes].view(self.dtype).reshape(self.shape)


class Scratch:
    """Hands out a workspace, place by place, behind the counters at its start.

    places: by name. end: the bytes needed so far.
    """

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.end = COUNTER_BYTES

    def take(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Place:
        """Room for an array, which nothing else of the product gets; ValueError for a name that is taken."""
        if name in self.places:
            raise ValueError(f"{name!r} has a place in the workspace already")
        place = self.places[name] = Place(self.end, shape, np.dtype(dtype))
        self.end += -(-place.nbytes // _ALIGNED) * _ALIGNED
        return place


@dataclass(frozen=True)
class Array:
    """An argument: the address of an array of the prepared weight, from a row of it on."""

    name: str
    row: int = 0


@dataclass(frozen=True)
class Number:
    """An argument: a number of the prepared weight."""

    name: str


@dataclass(frozen=True)
class Table:
    """An argument: the address of what a pure function makes of some values, the same for all weights."""

    make: Callable[..., npt.NDArray]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Structure:
    """An argument: a structure as a kernel takes it, its fields' values in their order."""

    dtype: np.dtype
    values: tuple[Any, ...]


def structure(dtype: np.dtype, *owners: Any, **values: Any) -> Structure:
    """A structure by its fields. One that isn't named is what the first owner (a spec, a cut) has of its name; a
    pointer is the array of its name."""
    names = dtype.names or ()
    if unknown := values.keys() - set(names):
        raise TypeError(f"a structure has no {', '.join(unknown)}; it has {', '.join(names)}")
    pointers = {name: Array(name) for name in names if dtype[name] == np.uint64}
    fields = owned(names, owners) | pointers | values
    return Structure(dtype, tuple(fields[name] for name in names))


@dataclass(frozen=True)
class Launch:
    """One start of a kernel: a template's instance in a source of kernels_cu.

    arguments: behind x, y and the workspace: NumPy's numbers, structures, and what stands for the weight's arrays and
    numbers. x, y: where it has those; None for the product's own. takes_bias: its x is the product's bias. dependent:
    whether it may start before the one before it has ended, and waits for that itself; cluster: how many neighbours
    along the grid's last axis are a cluster (`engines/cuda/dependent.py` does both).
    """

    source: str
    instance: str
    grid: tuple[int, ...]
    threads: int
    shared_bytes: int
    arguments: tuple[Any, ...]
    work: Work
    x: Place | None = None
    y: Place | None = None
    takes_bias: bool = False
    dependent: bool = True
    cluster: int = 1


@dataclass(frozen=True)
class Gemm:
    """y[:, first : first + rows] = x @ dense^T by the library, dense [rows, K] in x's dtype."""

    dense: Place | Array
    work: Work
    first: int = 0
    x: Place | None = None
    y: Place | None = None


Step = Launch | Gemm


@dataclass(frozen=True)
class Steps:
    """All of a product, in order, and the bytes of its workspace."""

    each: tuple[Step, ...]
    workspace: int

    @property
    def launches(self) -> tuple[Launch, ...]:
        """Without the library's products."""
        return tuple(step for step in self.each if isinstance(step, Launch))

    @property
    def works(self) -> tuple[Work, ...]:
        """What each has to do."""
        return tuple(step.work for step in self.each)
