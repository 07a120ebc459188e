"""The kernel interface: how a weight is multiplied, whatever its format and wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from codegemm.formats.weight import Spec, Weight


@dataclass(frozen=True)
class Cost:
    """What one product costs a kernel, counted, not measured.

    bytes_read, bytes_written: memory traffic if every byte moves once (weights as the kernel holds them, x, y).
    lookups: table entries or centroids fetched by a code.
    multiply_adds: fused multiply-adds.
    launches: kernels started (CUDA) or parallel loops entered (CPU).
    """

    bytes_read: int
    bytes_written: int
    lookups: int
    multiply_adds: int
    launches: int = 1


class Kernel(ABC):
    """One way to compute y = x @ W^T. Subclass it and pass an instance to `codegemm.register_kernel`.

    name: what `kernel=` takes, like `psumbook`.
    engine: `cpu` (weights on the CPU, NumPy arrays) or `cuda` (CuPy arrays).
    automatic: whether `kernel="auto"` may choose it; then its error must keep to `precision="full"`: at most 2e-4
        of the output's norm before rounding, on a GPU 1e-3 for more than one row or x in float32 (2e-3 for many rows in
        bfloat16).
    precision: `full`, or `fast` for one that `auto` takes only where `precision="fast"` allows for errors of 1e-2.
    extended: whether it multiplies ExtendedWeights itself. Any other is given their core, a CodebookWeight, with x made
        for it (`engines/extended.py`).
    """

    name: str
    engine: str
    automatic: bool = False
    precision: str = "full"
    extended: bool = False

    @property
    def full_name(self) -> str:
        """The name with its engine, `cpu:psumbook`."""
        return f"{self.engine}:{self.name}"

    def unavailable(self) -> str | None:
        """Why this kernel can't run on this machine at all, or None."""
        return None

    @abstractmethod
    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        """None if weights of `spec` on `device` can be multiplied by n rows of `dtype`, else the reason why not."""

    @abstractmethod
    def prepare(self, weight: Weight, device: str) -> Any:
        """The weight in the form that `run` reads, on `device`; made once per weight and kept with it."""

    @abstractmethod
    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        """out = x @ W^T, every element written.

        x: [n, K], contiguous, float16, bfloat16, float32 or float64; never written to, never overlapping `out`;
            on a GPU aligned to 16 bytes.
        out: [n, M], contiguous, x's dtype or float32.
        workspace: uint8 array of at least `workspace(spec, n, device)` bytes, aligned to 64; its content is arbitrary,
            but on a GPU the first 64 KiB are zero and must be zero again when the kernel has run.
        stream: on a GPU an object whose `ptr` is the CUDA stream to run on, or None for CuPy's current one.
        """

    def bind(self, prepared: Any, n: int, dtype: np.dtype, out_dtype: np.dtype) -> Callable[[Any, Any, Any, Any], None]:
        """`run` for exactly n rows of `dtype` and such an output, as a function of x, out, workspace and stream.

        A kernel of microseconds decides here what need not be decided at every call.
        """
        return partial(self.run, prepared)

    def is_automatic(self, n: int, dtype: np.dtype) -> bool:
        """Whether `auto` may choose it for n rows of `dtype`; `automatic` unless its error depends on them."""
        return self.automatic

    def workspace(self, spec: Spec, n: int, device: str) -> int:
        """Bytes of workspace that n rows (and any fewer) need on `device`; none unless a kernel says so."""
        return 0

    def load(self, prepared: Any, n: int, dtype: np.dtype) -> None:  # noqa: B027 (most kernels have nothing to do)
        """Do now what the first `run` with n rows (and any fewer) of `dtype` would do beside multiplying."""

    def builds(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> Iterable[Callable[[], object]]:
        """What products of n rows (and any fewer) compile at their first use, as calls that do it beforehand.

        Calls that are equal compile the same: `codegemm.warmup` makes one of them.
        """
        return ()

    @abstractmethod
    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        """What `run` with n rows of `dtype` costs."""

    def bits_per_weight(self, spec: Spec) -> float:
        """Bits of one weight as this kernel multiplies it; those of the format unless it keeps another form."""
        return spec.bits_per_weight

    def estimate(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> float:
        """Relative time of a product, by which `auto` ranks the automatic kernels of one engine."""
        return float(self.cost(spec, n, dtype).bytes_read)

    def __repr__(self) -> str:
        return f"<kernel {self.full_name}>"
