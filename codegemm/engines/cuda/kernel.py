"""What a CUDA kernel says of itself, and all that follows from its steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from codegemm import devices
from codegemm.devices import Device
from codegemm.engines import limits
from codegemm.engines.cuda import compiler, gemm, library, model
from codegemm.engines.cuda.bias import with_bias
from codegemm.engines.cuda.gpu import GRID, Gpu, gpu_of
from codegemm.engines.cuda.launch import Prepared, Run, bind
from codegemm.engines.cuda.steps import X_TYPES, Gemm, Scratch, Step, Steps
from codegemm.kernel import Cost, Kernel, Product, S, W

MIN_ARCH = 80
FLOAT32 = np.dtype(np.float32)
_MAX_RUNS = 256  # that a weight keeps: servers come with any number of rows


class CudaKernel(Kernel[S, W]):
    """A kernel for x in fp16, bf16 or fp32 whose products are steps.

    A subclass says what it refuses, how a weight is arranged, and which steps a product takes.
    """

    engine = "cuda"
    adds_bias = True
    few_rows: float = math.inf  # of x; more of them, however many, take the same kernels

    def unfit_for(self, product: Product[S], gpu: Gpu) -> str | None:
        """Why a product can't be on that GPU, or None; what no kernel takes (dtypes, sizes, GPUs) is refused before."""
        return None

    @abstractmethod
    def arrange(self, weight: W) -> Prepared:
        """The weight in the kernel's order, arranged where its arrays are: NumPy's or CuPy's."""

    @abstractmethod
    def steps(self, product: Product[S], gpu: Gpu, scratch: Scratch) -> list[Step]:
        """What a product does, in order, with places taken from `scratch`."""

    def batches(self, n: int) -> Iterable[int]:
        """Also what a plan for n compiles and binds beforehand: all up to n but those of which the others' launches and
        workspace are no more."""
        few = range(1, int(min(n, self.few_rows)) + 1)
        return few if n <= self.few_rows else (*few, n)

    def alike(self, product: Product[S]) -> Product[S]:
        """The product that is bound in place of this one: itself, or one for all whose launches are the same."""
        if product.n <= self.few_rows or product.biased:
            return product
        return Product.of(product.spec, int(self.few_rows) + 1, product.dtype)

    def refuses_on(self, product: Product[S], gpu: Gpu) -> str | None:
        """The same of everything but dtypes and GPUs: sizes, what the kernel is `unfit_for`, and its launches."""
        reason = limits.beyond(product) or self.unfit_for(product, gpu)
        return reason or _beyond_grid(self.decide(product, gpu))

    def decide(self, product: Product[S], gpu: Gpu) -> Steps:
        """A product's steps, decided once."""
        return _decide(self, product, gpu)

    def unavailable(self) -> str | None:
        return devices.unavailable() or library.unavailable()

    def refuses(self, product: Product[S], device: Device) -> str | None:
        gpu = gpu_of(device)
        if product.dtype.name not in X_TYPES:
            return f"x is {product.dtype}: it takes {', '.join(X_TYPES)}"
        if gpu.arch < MIN_ARCH:
            return f"{device} has compute capability {gpu.arch / 10}: it needs {MIN_ARCH / 10} or later"
        reason = self.refuses_on(product, gpu)
        if reason is None and any(isinstance(step, Gemm) for step in self.decide(product, gpu).each):
            reason = gemm.unavailable()
        return reason

    def prepare(self, weight: W, device: Device) -> Prepared:
        prepared = self.arrange(weight)
        devices.synchronize()  # products may come on any stream
        return prepared

    def bind(self, prepared: Prepared, product: Product[S]) -> Run:
        product = self.alike(product)
        key = product.n, product.dtype, product.out_dtype, product.biased
        run = prepared.runs.get(key)
        if run is None:
            steps = self.decide(product, gpu_of(prepared.device))
            if len(prepared.runs) >= _MAX_RUNS:
                prepared.runs.clear()
            run = prepared.runs.setdefault(key, bind(steps.each, prepared))
        return run

    def run(self, prepared: Prepared, x: Any, out: Any, workspace: Any, stream: Any, bias: Any = None) -> None:
        product: Product[Any] = Product(prepared.spec, len(x), x.dtype, out.dtype, bias is not None)
        self.bind(prepared, product)(x, out, workspace, stream, bias)

    def load(self, prepared: Prepared, product: Product[S]) -> None:
        for smaller in self._all(product):
            self.bind(prepared, smaller)

    def builds(self, product: Product[S], device: Device) -> Iterable[compiler.Build]:
        gpu = gpu_of(device)
        launches = (launch for smaller in self._all(product) for launch in self.decide(smaller, gpu).launches)
        return {compiler.Build(launch.source, launch.instance, gpu.arch) for launch in launches}

    def workspace(self, product: Product[S], device: Device) -> int:
        return max(self.decide(either, gpu_of(device)).workspace for either in self._both(product, product.n))

    def cost(self, product: Product[S], device: Device) -> Cost:
        works = self.decide(product, gpu_of(device)).works
        counts = ("bytes_read", "bytes_written", "multiply_adds", "lookups")
        return Cost(*(int(sum(getattr(work, count) for work in works)) for count in counts))

    def estimate(self, product: Product[S], device: Device) -> float:
        gpu = gpu_of(device)
        return model.seconds(self.decide(product, gpu).works, gpu)

    def _all(self, product: Product[S]) -> list[Product[S]]:
        """It and those of fewer rows, with y in x's dtype and in float32."""
        return [each for rows in self.batches(product.n) for each in self._both(product, rows)]

    @staticmethod
    def _both(product: Product[S], rows: int) -> list[Product[S]]:
        return [replace(product, n=rows, out_dtype=y) for y in {product.dtype, FLOAT32}]


def _beyond_grid(steps: Steps) -> str | None:
    for launch in steps.launches:
        for blocks, most in zip(launch.grid, GRID):
            if blocks > most:
                return f"{blocks} thread blocks side by side: a launch has up to {most} there"
    return None


@lru_cache(maxsize=4096)
def _decide(kernel: CudaKernel, product: Product, gpu: Gpu) -> Steps:
    scratch = Scratch()
    if product.biased:
        sums = replace(product, out_dtype=FLOAT32, biased=False)
        each = with_bias(kernel.steps(sums, gpu, scratch), product, scratch)
    else:
        each = kernel.steps(product, gpu, scratch)
    return Steps(tuple(each), scratch.end)
