"""Runs a comparison: every case, weight, kernel and batch."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from codegemm.comparison import measure
from codegemm.comparison.measure import DENSE, Candidate, Machine, Row
from codegemm.comparison.sources import Case
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel, Product
from codegemm.quantize.progress import Progress
from codegemm.registry import KernelInfo, kernel_for, refusal


@dataclass(frozen=True)
class Settings:
    """What is measured: kernels of one engine on every path, batch sizes, seconds for each kernel, weight and batch."""

    kernels: Sequence[Kernel]
    paths: Sequence[str]
    batches: Sequence[int]
    machine: Machine
    budget: float

    @property
    def dtype(self) -> np.dtype:
        """Of x: what a model uses on that engine."""
        return np.dtype(np.float32 if self.machine.engine == "cpu" else np.float16)


@dataclass(frozen=True)
class Operands:
    """x [largest batch, K], its product with the dequantised weight and with the original, in float64."""

    x: npt.NDArray
    truth: npt.NDArray[np.float64]
    original: npt.NDArray[np.float64] | None


@dataclass
class Result:
    """Everything that a comparison found, as plain data."""

    machine: Machine
    rows: list[Row] = field(default_factory=list)
    left_out: list[KernelInfo] = field(default_factory=list)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)

    def by_case(self) -> dict[str, list[Row]]:
        """The rows of each case, in order."""
        cases: dict[str, list[Row]] = {}
        for row in self.rows:
            cases.setdefault(row.case, []).append(row)
        return cases

    @property
    def paths(self) -> list[str]:
        """The instruction sets that were measured; none on a GPU."""
        return list(dict.fromkeys(row.path for row in self.rows if row.path))

    def means(self) -> list[tuple[str, str, str, int, float, int]]:
        """(kernel, path, config, batch, geometric mean of times dense, number of cases), in order of appearance."""
        ratios: dict[tuple[str, str, str, int], list[float]] = {}
        for row in self.rows:
            if row.times_dense is not None:
                ratios.setdefault((row.kernel, row.path, row.config, row.batch), []).append(row.times_dense)
        return [(*key, statistics.geometric_mean(values), len(values)) for key, values in ratios.items()]


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
    """
    left_out = measure.unusable(kernels)
    usable = [kernel for kernel in kernels if kernel.name not in {info.name for info in left_out}]
    progress.total(sum(len(case.configs) for case in cases) * len(usable) * len(paths) + 1)
    settings = Settings(usable, paths, sorted(set(batches)), measure.machine(engine), budget)
    progress.advance()
    result = Result(settings.machine, left_out=left_out)
    for case in cases:
        if case.skipped:
            result.skipped[case.title] = case.skipped
        result.rows += _run_case(case, settings, progress)
    result.machine = result.machine.with_bandwidth(measure.bandwidth(engine))
    best = result.machine.bandwidth
    result.rows = [replace(row, bandwidth_share=row.bytes_read / row.seconds / best) for row in result.rows]
    return result


def _run_case(case: Case, settings: Settings, progress: Progress) -> Iterator[Row]:
    x = measure.inputs(case.shape[1], max(settings.batches), settings.dtype)
    original = None if case.original is None else x.astype(np.float64) @ case.original.astype(np.float64).T
    dense: dict[int, float] = {}
    seen: set[str] = set()
    for config in case.configs:
        host = case.weight(config)
        operands = Operands(x, measure.exact(host, x), original)
        weight = host.to("cpu" if settings.machine.engine == "cpu" else "cuda:0")
        # The dense product comes first, since the others are told in its terms.
        ordered = sorted(settings.kernels, key=lambda k: k.name != "dense")
        for path in settings.paths:
            with measure.path(path):
                for kernel in ordered:
                    if kernel.name not in seen:
                        labels = ("", "") if kernel.name in DENSE else (config, path)
                        for row in _run_kernel(case, kernel, weight, labels, operands, settings, dense):
                            yield row
                            if kernel.name in DENSE:
                                seen.add(kernel.name)
                    progress.advance()


def _run_kernel(
    case: Case,
    kernel: Kernel,
    weight: Weight,
    labels: tuple[str, str],
    operands: Operands,
    settings: Settings,
    dense: dict[int, float],
) -> Iterator[Row]:
    """A row for every batch that the kernel supports; `dense` collects and gives the dense product's seconds.

    labels: the row's configuration and path.
    """
    config, path = labels
    spec, dtype, machine = weight.spec, settings.dtype, settings.machine
    kernel = kernel_for(kernel, spec)
    products = {n: Product.of(spec, n, dtype) for n in settings.batches}
    batches = [n for n, product in products.items() if not refusal(kernel, product, weight.device)]
    if not batches:
        return
    candidate = Candidate(kernel, weight, batches, dtype)
    for n in batches:
        y, timing = candidate.measure(operands.x[:n], settings.budget)
        seconds = timing.median
        if kernel.name == "dense":
            dense[n] = seconds
        bytes_read = kernel.cost(products[n], weight.device).bytes_read
        original = operands.original
        yield Row(
            case=case.title,
            shape=case.shape,
            kernel=kernel.name,
            precision=kernel.precision,
            path=path,
            config=config,
            bits_per_weight=kernel.bits_per_weight(spec),
            batch=n,
            seconds=seconds,
            quartiles=timing.quartiles,
            calls=len(timing.seconds),
            timed=timing.how,
            bytes_read=bytes_read,
            bandwidth_share=bytes_read / seconds / machine.bandwidth,
            times_dense=dense[n] / seconds if n in dense else None,
            error=measure.relative_error(y, operands.truth[:n]),
            error_to_original=None if original is None else measure.relative_error(y, original[:n]),
        )
