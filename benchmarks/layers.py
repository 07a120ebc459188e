"""Times every kernel on the linear layers of a model, on this machine's GPU.

Products are captured in CUDA graphs and timed as they replay, with weights rotated through more copies than the L2
cache holds. Every one that is timed is checked: against float64 for some rows of a codebook weight, against float32
behind rotations in float64 for E8P, which can't be multiplied by a part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.targets import Outcome, outcomes
from codegemm.comparison import pairs
from codegemm.comparison.bench import Bench
from codegemm.comparison.result import Result, Row
from codegemm.comparison.selection import DENSE, compared_kernels, entry
from codegemm.devices import FIRST_GPU
from codegemm.engines.cuda.gpu import gpu_of
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.format import spec_of
from codegemm.formats.incoherent import IncoherentWeight
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel, Product
from codegemm.measuring import sources
from codegemm.measuring.accuracy import exact, relative_error
from codegemm.measuring.machine import Machine
from codegemm.measuring.stopwatch import Candidate
from codegemm.registry import refusal
from codegemm.reporting import by

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CONFIGS = sources.RANDOM_CONFIGS
DTYPE = np.dtype(np.float16)
DEVICE = FIRST_GPU
_EACH = 0.05  # seconds for one measurement, if there is time
_CHECKED_ROWS = 256


@dataclass
class Report(Result):
    """unmeasured: what was left out, with the reason."""

    unmeasured: list[str] = field(default_factory=list)

    def outcomes(self) -> list[Outcome]:
        """What the rows say of the targets that they are about."""
        return [outcome for outcome in outcomes(self.rows, self.machine.bandwidth) if outcome.found is not None]

    def as_json(self) -> dict[str, Any]:
        """For `write_json`."""
        found = {"rows": self.rows, "left_out": self.unmeasured, "targets": self.outcomes()}
        return {**self.machine.as_json(), "arch": gpu_of(DEVICE).arch, **found}


class Clock:
    """Shares out the seconds of a part among its measurements."""

    def __init__(self, seconds: float, measurements: int) -> None:
        self._end, self._left = time.monotonic() + seconds, measurements

    def is_over(self) -> bool:
        """Whether nothing more must be begun."""
        return time.monotonic() >= self._end

    def next(self) -> float:
        """Seconds for the next measurement: half of its share, since it must be prepared, too. TimeoutError behind the
        end."""
        if self.is_over():
            raise TimeoutError("no time was left")
        share = (self._end - time.monotonic()) / max(1, self._left) / 2
        self._left -= 1
        return min(_EACH, share)


class Truth:
    """The right products of x [n, K] with a weight, or with some of its rows."""

    def __init__(self, weight: Weight, x: np.ndarray) -> None:
        rows = weight.shape[0]
        if isinstance(weight, CodebookWeight):
            chosen = np.random.default_rng(0).choice(rows, min(rows, _CHECKED_ROWS), replace=False)
            self._rows = np.union1d(chosen, [0, rows - 1])
            part = CodebookWeight(weight.codes[self._rows], weight.part_codebooks[0], weight.scales[self._rows])
            self._products = exact(part, x)
        elif isinstance(weight, IncoherentWeight):
            self._rows = np.arange(rows)
            rotated = weight.right.rotate(x.astype(np.float64)).astype(np.float32)
            blocks = weight.core_blocks(np.dtype(np.float32))
            product = np.concatenate([rotated @ block.T for _, block in blocks], 1)
            self._products = weight.left.unrotate(product.astype(np.float64))
        else:
            self._rows = np.arange(rows)
            self._products = exact(weight, x)

    def error(self, y: np.ndarray) -> float:
        """Of y [n or fewer, M]; not a number where an element is none."""
        return relative_error(y[:, self._rows], self._products[: len(y)])


def run(
    shapes: Sequence[tuple[int, int]],
    seconds: float,
    save: Callable[[Report], None],
    batches: Sequence[int] = BATCHES,
    configs: Sequence[str] = CONFIGS,
) -> Report:
    """Measure all shapes within about so many seconds; `save` is called whenever a shape is done."""
    report = Report(Machine.here(DEVICE.engine))
    cases = []
    for shape in shapes:
        held, reasons = sources.fitting(shape, configs)
        cases.append(sources.Case(by(shape), shape, held))
        report.unmeasured += [f"{by(shape)} {config}: {reason}" for config, reason in reasons.items()]
    clock = Clock(seconds, len(planned(shapes, batches, configs)))
    kernels = compared_kernels("cuda", None)
    for case in cases:
        for row in _measure(case, kernels, batches, clock, report):
            report.rows.append(row)
            print(line(row), flush=True)
        report.measure_bandwidth()
        save(report)
    return report


def builds(shapes: Sequence[tuple[int, int]], batches: Sequence[int] = BATCHES) -> Iterator[Callable[[], object]]:
    """What `run` compiles."""
    for kernel, product in planned(shapes, batches):
        yield from kernel.builds(product, DEVICE)


def planned(
    shapes: Sequence[tuple[int, int]], batches: Sequence[int], configs: Sequence[str] = CONFIGS
) -> list[tuple[Kernel, Product]]:
    """The products with weights of the configurations that a shape can hold, of every kernel that takes them."""
    kernels = compared_kernels("cuda", None)
    specs = [spec_of(shape, config) for shape in shapes for config in sources.fitting(shape, configs)[0]]
    products = [Product.of(spec, n, DTYPE) for spec in specs for n in batches]
    return [(kernel, product) for product in products for kernel in kernels if not refusal(kernel, product, DEVICE)]


def product_name(shape: Sequence[int], config: str, n: int, kernel: str) -> str:
    """A product for people, in columns."""
    return f"{shape[0]:6} x {shape[1]:<6} {config:11} N={n:<4} {kernel:14}"


def line(row: Row) -> str:
    """A row for people."""
    dense = "" if row.times_dense is None else f"{row.times_dense:6.2f} x dense"
    marks = f"{' *' if row.chosen else ''}{' call by call' if row.timed == 'calls' else ''}"
    return (
        f"{product_name(row.shape, row.config, row.batch, row.kernel)} "
        f"{row.seconds * 1e6:9.1f} us {row.bytes_read / row.seconds / 1e9:7.0f} GB/s "
        f"{100 * row.bandwidth_share:5.1f} % of copy {dense} error {row.error:.0e}{marks}"
    )


def compared(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Two runs of a part that tells times, as its JSON has them, product by product: their times and how many times as
    fast the second is, `~` where their quartiles overlap; the geometric mean last. ValueError where they have none in
    common."""
    found = pairs.pairs(before, after)
    told = [", ".join(filter(None, (run.get("device"), run.get("version")))) for run in (before, after)]
    lines = [
        f"{product_name(row['shape'], row['config'], row['batch'], row['kernel'])} "
        f"{pair.before['seconds'] * 1e6:9.1f} us {row['seconds'] * 1e6:9.1f} us {pair.ratio:6.2f} x"
        f"{'' if pair.apart else ' ~'}"
        for pair in found
        for row in [pair.after]
    ]
    return [" -> ".join(told), *lines, pairs.mean(found)]


def _measure(
    case: sources.Case, kernels: Sequence[Kernel], batches: Sequence[int], clock: Clock, report: Report
) -> Iterator[Row]:
    """A row for every weight, kernel and batch, as long as there is time; one kernel after the other, so that only one
    holds copies of the weight."""
    bench, seen = Bench(case, batches, report.machine), set()
    for config in case.configs:
        if clock.is_over():
            report.unmeasured.append(f"{case.title} {config}: no time was left")
            continue
        host = case.weight(config)
        truth, weight = Truth(host, bench.x), host.to(DEVICE)
        for kernel in kernels:
            if kernel.name in seen:
                continue
            try:
                found = entry(case, config, kernel, batches, DTYPE, DEVICE, "")
                if found is None:
                    continue
                candidate = Candidate(kernel, weight, [product.n for product in found.products], DTYPE)
                for product in found.products:
                    y, timing = candidate.measure(bench.x[: product.n], clock.next())
                    row = bench.row(kernel, product, DEVICE, config, timing, y, truth.error)
                    if kernel.name in DENSE:
                        seen.add(kernel.name)
                    yield replace(row, rounds=())
            except Exception as error:  # a kernel that fails must not take the others' times with it
                report.unmeasured.append(f"{case.title} {config} {kernel.name}: {type(error).__name__}: {error}")
            weight.memo.clear()
