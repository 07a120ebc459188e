"""The kernel interface: how a weight is multiplied, whatever its format and wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Self, TypeVar

import numpy as np

from codegemm import devices
from codegemm.arrays import float_dtype
from codegemm.devices import Device
from codegemm.formats.weight import Spec, Weight

S = TypeVar("S", bound=Spec)
W = TypeVar("W", bound=Weight)


@dataclass(frozen=True)
class Product(Generic[S]):
    """y [n, M] = x [n, K] @ W^T without its arrays: what kernels decide by.

    spec: the weight's. n: rows of x and y. dtype, out_dtype: of x, and of y: x's or float32. biased: whether the kernel
    adds a bias to y.
    """

    spec: S
    n: int
    dtype: np.dtype
    out_dtype: np.dtype
    biased: bool = False

    @classmethod
    def of(cls, spec: S, n: int, dtype: Any, out_dtype: Any = None, biased: bool = False) -> Self:
        """One whose y is of x's dtype unless another is named; dtypes of NumPy or torch, or their names."""
        dtype = float_dtype(dtype)
        return cls(spec, int(n), dtype, dtype if out_dtype is None else float_dtype(out_dtype), biased)

    @property
    def multiply_adds(self) -> int:
        """Of a dense product: n * M * K."""
        return self.n * self.spec.out_features * self.spec.in_features

    @property
    def x_bytes(self) -> int:
        """Of x."""
        return self.n * self.spec.in_features * self.dtype.itemsize

    @property
    def y_bytes(self) -> int:
        """Of y."""
        return self.n * self.spec.out_features * self.out_dtype.itemsize


@dataclass(frozen=True)
class Cost:
    """What one product moves from and to memory: weights as the kernel holds them, x, y; every byte once in each of the
    parts that a kernel does one after the other.

    multiply_adds, lookups: that it can't do without, 0 where that is not told: those of x by weights, and those that
    make tables; entries of such tables that are gathered and added.
    """

    bytes_read: int
    bytes_written: int
    multiply_adds: int = 0
    lookups: int = 0


class Kernel(ABC, Generic[S, W]):
    """One way to compute y = x @ W^T. Subclass it and pass an instance to `codegemm.register_kernel`.

    S, W: spec and weights that it multiplies, like Kernel[CodebookSpec, CodebookWeight]; for type checkers alone.

    name: what `kernel=` takes, like `psumbook`.
    engine: `cpu` (weights on the CPU, NumPy arrays) or `cuda` (CuPy arrays).
    weights: the class of weights that it multiplies. It also gets TransformedWeights with such a core, with x made for
        that (`engines/transformed.py`); on a GPU a `CudaKernel` does.
    automatic: whether `kernel="auto"` may choose it; then its error must keep to `precision="full"`: at most 2e-4
        of the norm of each row of y before rounding, on a GPU 1e-3 for more than one row, several codebooks or x in
        float32 (2e-3 for many rows in bfloat16), of what that is where the sums do not cancel.
    precision: `full`, or `fast` for one that `auto` takes only where `precision="fast"` allows for errors of 1e-2.
    rearranged: names of the weight's arrays of which what `prepare` makes has all, in another order: `restore` finds
        them there. A weight can let go of these (`codegemm.compact`); `prepare` may keep the others as they are.
    folds: whether, of a TransformedWeight of several terms, it multiplies x by all of them at once: what it gets as
        weight and spec are then such of core and terms alone. Other kernels get the core, and x once for each term.
    adds_bias: whether `run`, and what `bind` returns, take a last argument `bias`: None, or float32 on the device to be
        added before y is rounded, [M] or, on the CPU, [n, M]. Of other kernels y is taken in float32, and the bias
        added after them.
    """

    name: str = ""
    engine: str = ""
    weights: type[Weight] = Weight  # type: ignore[type-abstract]
    automatic: bool = False
    precision: str = "full"
    folds: bool = False
    adds_bias: bool = False
    rearranged: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name with its engine, `cpu:psumbook`."""
        return f"{self.engine}:{self.name}"

    def unavailable(self) -> str | None:
        """Why this kernel can't run on this machine at all, or None; on a GPU why there is none."""
        return devices.unavailable() if self.engine == "cuda" else None

    def refuses(self, product: Product[S], device: Device) -> str | None:
        """Why a product with one of its `weights` on `device` can't be, like "n=5: up to 4 rows"; None if it can."""
        return None

    @abstractmethod
    def prepare(self, weight: W, device: Device) -> Any:
        """The weight in the form that `run` reads, on `device`; made once per weight and kept with it.

        It must not hold the weight itself, which would never be freed, and `copy.deepcopy` must copy its arrays.
        """

    @abstractmethod
    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        """out = x @ W^T, every element written.

        x: [n, K], contiguous, float16, bfloat16, float32 or float64; never written to, never overlapping `out`;
            on a GPU aligned to 16 bytes.
        out: [n, M], contiguous, x's dtype or float32.
        workspace: uint8 array of at least `workspace(product, device)` bytes, aligned to 64; its content is arbitrary,
            but on a GPU the first 64 KiB are zero and must be zero again when the kernel has run.
        stream: on a GPU an object whose `ptr` is the CUDA stream to run on, or None for CuPy's current one.
        """

    def restore(self, prepared: Any, name: str) -> Any:
        """The weight's array of that name, one of `rearranged`, made anew from what `prepare` made."""
        raise NotImplementedError(f"kernel {self.name!r} has no {name} to restore")

    def let_go(self, weight: W, prepared: Any) -> None:
        """Have the weight hold what is `rearranged` in what `prepare` made of it alone."""
        weight.let_go(prepared, {name: partial(self.restore, prepared, name) for name in self.rearranged})

    def bind(self, prepared: Any, product: Product[S]) -> Callable[[Any, Any, Any, Any], None]:
        """`run` for exactly this product, as a function of x, out, workspace and stream.

        A kernel of microseconds decides here what need not be decided at every call.
        """
        return partial(self.run, prepared)

    def is_automatic(self, product: Product[S]) -> bool:
        """Whether `auto` may choose it for a product; `automatic` unless its error depends on more."""
        return self.automatic

    def tolerance(self, product: Product[S]) -> float:
        """What it promises: the largest ||y - y_ref|| / ||y_ref|| for normally distributed x, before y is rounded to a
        half. Unless a kernel says so, what is asked of `automatic` kernels, and 3e-2 for those of precision `fast`."""
        if self.precision == "fast":
            return 3e-2
        if self.engine == "cpu" or (product.n == 1 and product.dtype.itemsize == 2):
            return 2e-4
        return 2e-3 if product.dtype.name == "bfloat16" else 1e-3

    def workspace(self, product: Product[S], device: Device) -> int:
        """Bytes of workspace that a product needs on `device`, whatever y's dtype; none unless a kernel says so."""
        return 0

    def batches(self, n: int) -> Iterable[int]:
        """Numbers of rows up to n of which one needs as much workspace as any up to n: n itself unless it varies."""
        return (n,)

    def load(self, prepared: Any, product: Product[S]) -> None:
        """Compile and load what this product needs, and those of fewer rows and with y in float32."""

    def builds(self, product: Product[S], device: Device) -> Iterable[Callable[[], object]]:
        """What a product, and one of fewer rows, compiles at its first use, as calls that do it beforehand.

        Calls that are equal compile the same: `codegemm.warmup` makes one of them.
        """
        return ()

    def path(self) -> str:
        """Which code products take where there are several for one kernel: the instruction set that it is compiled for,
        `numpy` where nothing could be compiled; empty where there is but one."""
        return ""

    @abstractmethod
    def cost(self, product: Product[S], device: Device) -> Cost:
        """What `run` moves and computes."""

    def bits_per_weight(self, spec: S) -> float:
        """Bits of one weight as this kernel multiplies it; those of the format unless it keeps another form."""
        return spec.bits_per_weight

    def estimate(self, product: Product[S], device: Device) -> float:
        """Seconds of a product, by which `auto` ranks the automatic kernels of one engine; its bytes' time unless a
        kernel knows better."""
        cost = self.cost(product, device)
        return (cost.bytes_read + cost.bytes_written) / devices.bandwidth(device)

    def prepared(self, weight: W) -> Any:
        """What `prepare` made of a weight; kept with it, and freed with it."""
        key, memo = (self, weight.device), weight.memo
        if key not in memo:
            # Two threads may both prepare the first time; all get the same result.
            memo.setdefault(key, self.prepare(weight, weight.device))
        return memo[key]

    def __repr__(self) -> str:
        return f"<kernel {self.full_name}>"
