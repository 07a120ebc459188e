"""What the CUDA kernels share on the host: a weight in a kernel's order, and launches decided once and kept with it."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codegemm.engines.cuda import compiler, library
from codegemm.engines.cuda import device as gpus
from codegemm.engines.cuda.dependent import DependentKernel
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.model import Work, seconds
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Kernel

MIN_ARCH = 80
X_TYPES = {"float16": "Half", "bfloat16": "Bfloat", "float32": "Float"}  # classes in floats.cuh

# What a product is once everything is decided: a function of x, out, workspace and stream.
Run = Callable[[Any, Any, Any, Any], None]


@dataclass(frozen=True)
class Launch:
    """One start of a kernel whose arguments are x, y, the workspace and `constants`."""

    function: Any
    grid: tuple[int, ...]
    block: tuple[int]
    shared_bytes: int
    constants: tuple[Any, ...]
    held: Any = None  # arrays that the constants point to
    bound: Run | None = field(init=False, repr=False, compare=False)  # of a kernel that depends on the one before

    def __post_init__(self) -> None:
        depends = isinstance(self.function, DependentKernel)
        bound = self.function.bound(self.grid, self.block, self.shared_bytes, self.constants) if depends else None
        object.__setattr__(self, "bound", bound)

    def __call__(self, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        """Start it."""
        if self.bound is not None:
            self.bound(x, out, workspace, stream)
            return
        self.function(
            self.grid, self.block, (x, out, workspace, *self.constants), shared_mem=self.shared_bytes, stream=stream
        )


@dataclass(frozen=True)
class Launches:
    """Several, one after the other."""

    each: tuple[Run, ...]

    def __call__(self, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        """Start them."""
        for launch in self.each:
            launch(x, out, workspace, stream)


@dataclass
class Prepared:
    """A weight in a kernel's order on its GPU, and what was decided so far, by rows, dtype of x and of y.

    arrays: on the GPU. numbers: what else kernels take from the weight.
    """

    spec: Spec
    device: str
    arrays: dict[str, Any]
    numbers: dict[str, float] = field(default_factory=dict)
    runs: dict[tuple[int, np.dtype, np.dtype], Run] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        return Prepared(self.spec, self.device, copy.deepcopy(self.arrays, memo), dict(self.numbers))


class Decided(Kernel):
    """A kernel whose products are decided once for each number of rows and dtypes, and kept in `prepared.runs`."""

    @abstractmethod
    def decide(self, prepared: Any, n: int, dtype: np.dtype, out_dtype: np.dtype) -> Run:
        """What a product of n rows launches, compiled and loaded."""

    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        self.bind(prepared, len(x), x.dtype, out.dtype)(x, out, workspace, stream)

    def bind(self, prepared: Any, n: int, dtype: np.dtype, out_dtype: np.dtype) -> Run:
        found = prepared.runs.get((n, dtype, out_dtype))
        if found is None:
            made = self.decide(prepared, n, dtype, out_dtype)
            found = prepared.runs.setdefault((n, dtype, out_dtype), made)
        return found


def unfit(dtype: np.dtype, device: str) -> str | None:
    """Why x of a dtype can't be multiplied on that GPU by any kernel here, or None."""
    if dtype.name not in X_TYPES:
        return f"x is {dtype}: it takes {', '.join(X_TYPES)}"
    arch = gpus.gpu(device).arch
    if arch < MIN_ARCH:
        return f"{device} has compute capability {arch / 10}: it needs {MIN_ARCH / 10} or later"
    return None


class CudaKernel(Decided):
    """A kernel for x in fp16, bf16 or fp32 that is compiled for its GPU: subclasses say how a weight is arranged and
    what a product launches."""

    engine = "cuda"

    @abstractmethod
    def refuses(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> str | None:
        """Why this product can't be, or None; `supports` on any GPU that is new enough."""

    @abstractmethod
    def arrange(self, weight: Weight) -> Prepared:
        """The weight in the kernel's order, arranged where its arrays are: NumPy's or CuPy's."""

    @abstractmethod
    def work(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> tuple[Work, ...]:
        """What a product's launches have to do on a GPU."""

    @abstractmethod
    def instances(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> Iterable[tuple[str, str]]:
        """Sources and templates' instances of all that a product of n rows launches, whatever y's dtype."""

    def builds(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> Iterable[compiler.Build]:
        gpu = gpus.gpu(device)
        return {
            compiler.Build(source, instance, gpu.arch)
            for rows in self.batches(n)
            for source, instance in self.instances(spec, rows, dtype, gpu)
        }

    def estimate(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> float:
        return self.seconds(spec, n, dtype, gpus.gpu(device))

    def seconds(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> float:
        """What a product is estimated to take on a GPU: by its parts, where those were measured, or by its work."""
        parts = self.parts(spec, n, dtype, gpu)
        return sum(parts.values()) if parts else seconds(self.work(spec, n, dtype, gpu), gpu)

    def parts(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> dict[str, float]:
        """The seconds whose sum a product takes, by what they are spent on; empty where nothing was measured."""
        return {}

    def unavailable(self) -> str | None:
        return gpus.unavailable() or library.unavailable()

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        return unfit(dtype, device) or self.refuses(spec, n, dtype, gpus.gpu(device))

    def prepare(self, weight: Weight, device: str) -> Prepared:
        prepared = self.arrange(weight)
        gpus.synchronize()  # products may come on any stream
        return prepared

    def load(self, prepared: Prepared, n: int, dtype: np.dtype) -> None:
        for rows in self.batches(n):
            for out_dtype in {dtype, np.dtype(np.float32)}:
                self.bind(prepared, rows, dtype, out_dtype)

    def batches(self, n: int) -> Iterable[int]:
        """Numbers of rows for which a plan for n rows decides beforehand."""
        return range(1, n + 1)


def launch(
    where: str,
    source: str,
    instance: str,
    grid: tuple[int, ...],
    threads: int,
    shared_bytes: int,
    constants: tuple[Any, ...],
    held: Any = None,
) -> Launch:
    """A launch on the GPU `where` of a template's instance, compiled and loaded; constants as CuPy takes them."""
    function = library.function(source, instance, where)
    return Launch(function, grid, (threads,), shared_bytes, tuple(map(library.constant, constants)), held)
