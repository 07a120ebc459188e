"""A weight that is there as long as its benchmarks run, and whether there is memory for it."""

from __future__ import annotations

import numpy as np

from benchmarks.layers import Truth
from codegemm.devices import Device
from codegemm.kernel import Kernel, Product
from codegemm.measuring import conditions, memory, sources
from codegemm.measuring.accuracy import inputs
from codegemm.measuring.stopwatch import Candidate
from codegemm.registry import kernel_for, refusal
from codegemm.reporting import by

_TRUTH = np.dtype(np.float64)


class Held:
    """A random weight of a shape and configuration, x [rows, K] and the right products.

    MemoryError, with both in one line, where a lower bound of what it takes is more than is free.
    """

    def __init__(self, shape: tuple[int, int], config: str, engine: str, rows: int) -> None:
        case = sources.shape_case(shape, [config])
        self.device, self.dtype, self.spec = Device.parse(engine), conditions.dtype_of(engine), case.spec(config)
        (m, k), self._what = shape, f"{by(shape)} {config}"
        self._beside = rows * (self.dtype.itemsize * k + _TRUTH.itemsize * m)
        memory.ensure(self._what, case.least_bytes(config) + self._beside)
        host = case.weight(config)
        self.x = inputs(k, rows, self.dtype)
        self.truth, self.weight = Truth(host, self.x), host.to(self.device)
        self._last: Kernel | None = None

    def product(self, kernel: Kernel, batch: int) -> tuple[Kernel, Product]:
        """The first rows of x times the weight, and what multiplies such under the kernel's name; ValueError, with its
        reason, where that refuses to."""
        kernel, product = kernel_for(kernel, self.spec), Product.of(self.spec, batch, self.dtype)
        if reason := refusal(kernel, product, self.device):
            raise ValueError(reason)
        return kernel, product

    def candidate(self, kernel: Kernel, product: Product) -> Candidate:
        """Ready to be timed. The weight keeps its form for one kernel, until another has its turn. MemoryError where
        there is no room for it."""
        if kernel is not self._last:
            self.weight.memo.clear()
            memory.check(f"{self._what} {kernel.name}", [(kernel, product)], self.device, 0, self._beside)
        self._last = kernel
        return Candidate(kernel, self.weight, [product.n], self.dtype)


class Weights:
    """Random weights, one of which is there at a time: made once for benchmarks that follow one another.

    rows: of x, at most.
    """

    def __init__(self, engine: str, rows: int) -> None:
        self._engine, self._rows = engine, rows
        self._name: tuple[tuple[int, int], str] | None = None
        self._held: Held | None = None

    def held(self, shape: tuple[int, int], config: str) -> Held:
        """The weight of that shape and configuration. MemoryError where there is too little for it."""
        if self._held is None or self._name != (shape, config):
            self._held = None  # before the next one takes its memory
            self._held, self._name = Held(shape, config, self._engine, self._rows), (shape, config)
        return self._held
