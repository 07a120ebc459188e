"""Runs a comparison: every case, weight, kernel and batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codegemm.choice import select
from codegemm.comparison.result import Machine, Result, Row
from codegemm.comparison.selection import DENSE
from codegemm.devices import Device
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel, Product
from codegemm.measuring import conditions, memory
from codegemm.measuring.accuracy import exact, inputs, relative_error
from codegemm.measuring.sources import Case
from codegemm.measuring.stopwatch import Candidate
from codegemm.quantize.progress import Progress
from codegemm.registry import kernel_for, refusal


@dataclass(frozen=True)
class Settings:
    """What is measured: kernels of one engine on every path, batch sizes. budget: seconds for the next product."""

    kernels: Sequence[Kernel]
    paths: Sequence[str]
    batches: Sequence[int]
    machine: Machine
    budget: Callable[[], float]


def run(
    cases: Sequence[Case],
    kernels: Sequence[Kernel],
    batches: Sequence[int],
    engine: str,
    budget: float,
    progress: Progress,
    paths: Sequence[str] = ("",),
) -> Result:
    """Measure every case; `budget` is the time in seconds for one kernel, weight and batch.

    paths: instruction sets to compile the CPU's kernels for, the one that products take if it is empty.

    Raises MemoryError, before anything is measured, where there is too little memory for one of the cases.
    """
    left_out = {kernel.name: reason for kernel in kernels if (reason := kernel.unavailable()) is not None}
    usable = [kernel for kernel in kernels if kernel.name not in left_out]
    for case in cases:
        _check_memory(case, usable, batches, engine)
    progress.total(sum(len(case.configs) for case in cases) * len(usable) * len(paths) + 1)
    settings = Settings(usable, paths, sorted(set(batches)), Machine.here(engine), lambda: budget)
    progress.advance()
    result = Result(settings.machine, left_out=left_out)
    for case in cases:
        if case.skipped:
            result.skipped[case.title] = case.skipped
        result.rows += _run_case(case, settings, progress)
    result.measure_bandwidth()
    return result


def _check_memory(case: Case, kernels: Sequence[Kernel], batches: Sequence[int], engine: str) -> None:
    """MemoryError where a case can't be measured, with a lower bound of what it takes."""
    device, dtype, (m, k), most = Device.parse(engine), conditions.dtype_of(engine), case.shape, max(batches)
    x_bytes, truth_bytes = most * dtype.itemsize * k, 8 * most * m  # the truth in float64
    if case.original is not None:
        memory.ensure(f"{case.title}: its outputs in float64", x_bytes + truth_bytes + 8 * m * k)
    for config in case.configs:
        spec = case.spec(config)
        products = [Product.of(spec, n, dtype) for n in batches]
        pairs = ((kernel_for(kernel, spec), product) for kernel in kernels for product in products)
        timed = [(kernel, product) for kernel, product in pairs if not refusal(kernel, product, device)]
        made = x_bytes + case.least_bytes(config)
        memory.check(f"{case.title}, {config}", timed, device, made, x_bytes + truth_bytes)


def _run_case(case: Case, settings: Settings, progress: Progress) -> Iterator[Row]:
    products = Products(case, settings)
    for config in case.configs:
        host = case.weight(config)
        error = error_to(exact(host, products.x))
        weight = host.to("cpu" if settings.machine.engine == "cpu" else "cuda:0")
        for path in settings.paths:
            with conditions.path(path):
                for kernel in settings.kernels:
                    yield from products.rows(kernel, weight, config, error, path)
                    progress.advance()


def error_to(truth: npt.NDArray[np.float64]) -> Callable[[npt.NDArray], float]:
    """How far y [n, M] is from the first n rows of `truth`."""
    return lambda y: relative_error(y, truth[: len(y)])


class Products:
    """The products of one case: those by its weights, told in terms of the dense one, which is measured first.

    x: [largest batch, K].
    """

    def __init__(self, case: Case, settings: Settings) -> None:
        self._case, self._settings = case, settings
        self._dtype = conditions.dtype_of(settings.machine.engine)
        self.x = inputs(case.shape[1], max(settings.batches), self._dtype)
        self._error_to_original: Callable[[npt.NDArray], float | None] = lambda y: None
        if case.original is not None:
            self._error_to_original = error_to(self.x.astype(np.float64) @ case.original.astype(np.float64).T)
        self._dense: dict[int, float] = {}
        self._seen: set[str] = set()

    def rows(
        self, kernel: Kernel, weight: Weight, config: str, error: Callable[[npt.NDArray], float], path: str = ""
    ) -> Iterator[Row]:
        """A row for every batch that the kernel supports; none for a dense one that was measured with another weight.

        error: how far y [n, M] is from the product of the first n rows of x.
        """
        if kernel.name in self._seen:
            return
        is_dense, settings = kernel.name in DENSE, self._settings
        spec = weight.spec
        kernel = kernel_for(kernel, spec)
        products = {n: Product.of(spec, n, self._dtype) for n in settings.batches}
        batches = [n for n, product in products.items() if not refusal(kernel, product, weight.device)]
        if not batches:
            return
        candidate = Candidate(kernel, weight, batches, self._dtype)
        for n in batches:
            y, timing = candidate.measure(self.x[:n], settings.budget())
            seconds = timing.median
            if is_dense:
                self._seen.add(kernel.name)
            if kernel.name == "dense":
                self._dense[n] = seconds
            bytes_read = kernel.cost(products[n], weight.device).bytes_read
            yield Row(
                case=self._case.title,
                shape=self._case.shape,
                kernel=kernel.name,
                precision=kernel.precision,
                path="" if is_dense else path,
                config="" if is_dense else config,
                bits_per_weight=kernel.bits_per_weight(spec),
                batch=n,
                seconds=seconds,
                quartiles=timing.quartiles,
                calls=len(timing.seconds),
                timed=timing.how,
                bytes_read=bytes_read,
                bandwidth_share=bytes_read / seconds / settings.machine.bandwidth,
                times_dense=self._dense[n] / seconds if n in self._dense else None,
                error=error(y),
                error_to_original=self._error_to_original(y),
                chosen=kernel.is_automatic(products[n]) and select(products[n], weight.device) is kernel,
            )
