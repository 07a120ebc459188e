"""Times products in interleaved rounds: every kernel has its turn in every round, and so has the read bandwidth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from benchmarks.cpu import overhead, peers, small
from benchmarks.cpu.ggml import CONFIGS as GGML_CONFIGS
from benchmarks.cpu.measured import (
    AQLM,
    AQLM_CONFIG,
    AUTO,
    AUTO_THREADS,
    DENSE,
    FAST,
    FAST_ERROR,
    FULL_ERROR,
    GGML,
    PSUMBOOK,
    PSUMBOOK_FAST,
    TORCH_BF16,
    TORCH_FP32,
    WHOLE_MATRIX,
    Accuracy,
    Bandwidth,
    Measured,
    Shape,
    Timed,
)
from benchmarks.targets import MAIN
from codegemm.choice import select
from codegemm.devices import CPU
from codegemm.engines.cpu import device
from codegemm.formats import random_weight
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel, Product
from codegemm.measuring import conditions, sources
from codegemm.measuring.accuracy import exact, inputs, relative_error
from codegemm.measuring.stopwatch import Candidate, turn
from codegemm.products import plan
from codegemm.registry import registered
from codegemm.reporting import by, counted

THREADS = (1, AUTO_THREADS)
BATCHES = (1, 4, 8, 16, 64, 128, 256, 512)  # rows of x that `auto` is measured for
FEW_ROWS = (1, 4, 8, 16, 64)  # for which others are, too; with one thread a single row alone
MOST_BF16 = 16  # rows that torch multiplies in bfloat16: without its instructions more take seconds
DTYPE = np.dtype(np.float32)
_SAMPLES = 4  # rows of x for an error
_TIMES, _OUTLIERS_EVERY = 50, 256  # one element of x in so many is so many times as large
OUTLIERS = f"outliers of {_TIMES} times"


@dataclass(frozen=True)
class Settings:
    """shapes, and rows of x for `auto`; rounds, and the seconds of a kernel's turn in each. host_rounds: of the calls
    without a kernel."""

    shapes: tuple[Shape, ...]
    batches: tuple[int, ...]
    rounds: int
    budget: float
    host_rounds: int


FULL_SIZE = Settings(sources.LLAMA_3_8B[:2], BATCHES, 5, 0.1, 200)
QUICK = Settings(((1024, 2048), (2048, 1024)), (1, 4, 8, 16), 2, 0.002, 3)


@dataclass(frozen=True)
class Case:
    """What is timed: a kernel's name (or what stands for what `auto` takes), weights and rows of x."""

    kernel: str
    config: str
    batch: int


def cases(threads: int, batches: Sequence[int]) -> list[Case]:
    """All that is timed with so many threads; dense products are those of the first configuration."""
    many = batches if threads == AUTO_THREADS else [1]
    few = [n for n in many if n in FEW_ROWS]
    return [
        *(Case(name, MAIN[0], n) for n in many for name in (DENSE, TORCH_FP32)),
        *(Case(TORCH_BF16, MAIN[0], n) for n in many if n <= MOST_BF16),
        *(Case(AUTO, config, n) for n in many for config in MAIN),
        *(Case(FAST, config, n) for n in many for config in MAIN),
        *(Case(PSUMBOOK, config, n) for n in few for config in MAIN),
        *(Case(PSUMBOOK_FAST, config, 1) for config in MAIN),
        *(Case(kernel, AQLM_CONFIG, 1) for kernel in (AUTO, PSUMBOOK, AQLM)),
        *(Case(GGML, config, n) for n in few for config in GGML_CONFIGS),
    ]


def run(settings: Settings, progress: Callable[[str], None]) -> Measured:
    """Measure everything; `progress` hears what comes next."""
    known = {kernel.name: kernel for kernel in registered("cpu")}
    measured = Measured(left_out=left_out(known))
    usable = {name: kernel for name, kernel in known.items() if name not in measured.left_out}
    for shape in settings.shapes:
        progress(f"{by(shape)}: weights")
        bench = Bench(shape, usable, settings)
        for threads in THREADS:
            progress(f"{by(shape)}, {counted(threads, 'thread')}")
            with peers.threads(threads):
                rows, bandwidth = bench.time(threads)
            measured.rows += rows
            measured.bandwidths.append(bandwidth)
        measured.accuracies += bench.accuracies()
    if TORCH_FP32 in usable:
        progress("small layers")
        with peers.threads(AUTO_THREADS):
            measured.small += small.run(settings.rounds, settings.budget)
        progress("the host's part")
        measured.others += overhead.outcomes(overhead.measure(settings.host_rounds))
    return measured


def left_out(known: dict[str, Kernel]) -> dict[str, str]:
    """Kernels that are to be measured and can't run, with the reason."""
    reasons = {
        name: known[name].unavailable() if name in known else "there is no such kernel"
        for name in (*WHOLE_MATRIX, PSUMBOOK, PSUMBOOK_FAST, AQLM, GGML)
    }
    return {name: reason for name, reason in reasons.items() if reason}


class Bench:
    """The weights of one shape, their products in float64, and every kernel with its copies of the weights."""

    def __init__(self, shape: Shape, usable: dict[str, Kernel], settings: Settings) -> None:
        self._shape, self._usable, self._settings = shape, usable, settings
        self._x = inputs(shape[1], max(settings.batches), DTYPE)
        self._weights: dict[str, Weight] = {}
        batches: dict[tuple[str, str], set[int]] = {}
        for case in itertools.chain.from_iterable(map(self._cases, THREADS)):
            batches.setdefault((case.kernel, case.config), set()).add(case.batch)
        most = {
            config: max(max(rows) for (_, its), rows in batches.items() if its == config) for config in self._weights
        }
        self._truth = {config: exact(weight, self._x[: most[config]]) for config, weight in self._weights.items()}
        self._candidates = {
            (kernel, config): Candidate(usable[kernel], self._weights[config], sorted(rows), DTYPE)
            for (kernel, config), rows in batches.items()
        }

    def time(self, threads: int) -> tuple[list[Timed], Bandwidth]:
        """All products with so many threads."""
        calls = {
            case: self._candidates[case.kernel, case.config].rotating_call(self._x[: case.batch])
            for case in self._cases(threads)
        }
        seconds: dict[Case, list[float]] = {case: [] for case in calls}
        errors = dict.fromkeys(calls, 0.0)
        read = []
        for _ in range(self._settings.rounds):
            conditions.settle()
            read.append(device.measure_bandwidth())
            for case, (call, y) in calls.items():
                conditions.settle()
                seconds[case].append(turn(call, self._settings.budget)[0])
                error = relative_error(y, self._truth[case.config][: case.batch])
                errors[case] = max(errors[case], error)
        rows = [self._row(case, threads, seconds[case], errors[case]) for case in calls]
        return rows, Bandwidth(self._shape, threads, tuple(read))

    def accuracies(self) -> Iterator[Accuracy]:
        """Errors of one row of x at a time, for both precisions."""
        limits = {"full": FULL_ERROR} | ({"fast": FAST_ERROR} if PSUMBOOK_FAST in self._usable else {})
        for config in MAIN:
            weight = self._weight(config)
            for kind, x in samples(self._shape[1]).items():
                truth = exact(weight, x)
                for precision, limit in limits.items():
                    y = [plan(weight, 1, DTYPE, precision=precision)(row) for row in x]
                    error = max(relative_error(*pair) for pair in zip(y, truth, strict=True))
                    yield Accuracy(precision, kind, self._shape, config, error, limit)

    def _cases(self, threads: int) -> list[Case]:
        """What can be timed here, the kernels that `auto` takes in place of what stands for them. Single rows of x come
        first, soon after the bandwidth that they are compared with."""
        wanted = cases(threads, self._settings.batches)
        here = [case for case in wanted if case.kernel in (AUTO, FAST) or case.kernel in self._usable]
        taken = dict.fromkeys(replace(case, kernel=self._selected(case).name) for case in here)
        return sorted(taken, key=lambda case: case.batch)

    def _product(self, case: Case) -> Product:
        return Product.of(self._weight(case.config).spec, case.batch, DTYPE)

    def _weight(self, config: str) -> Weight:
        """Made where one is asked for: those of ggml need its library."""
        if config not in self._weights:
            self._weights[config] = random_weight(self._shape, config)
        return self._weights[config]

    def _selected(self, case: Case) -> Kernel:
        if case.kernel == FAST:
            return select(self._product(case), CPU, precision="fast")
        return select(self._product(case), CPU, case.kernel)

    def _row(self, case: Case, threads: int, seconds: list[float], error: float) -> Timed:
        kernel, is_dense = self._usable[case.kernel], case.kernel in WHOLE_MATRIX
        is_own = not is_dense and case.kernel not in (AQLM, GGML)
        return Timed(
            shape=self._shape,
            threads=threads,
            kernel=case.kernel,
            config="" if is_dense else case.config,
            batch=case.batch,
            seconds=tuple(seconds),
            bytes_read=kernel.cost(self._product(case), CPU).bytes_read,
            chosen=is_own and self._selected(replace(case, kernel=AUTO)) is kernel,
            chosen_fast=is_own and self._selected(replace(case, kernel=FAST)) is kernel,
            error=error,
        )


def samples(columns: int) -> dict[str, npt.NDArray[np.float32]]:
    """Rows of x by their kind: normally distributed, and the same with outliers at random places."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((_SAMPLES, columns), np.float32)
    with_outliers = normal.copy()
    for row in with_outliers:
        row[rng.choice(columns, -(-columns // _OUTLIERS_EVERY), replace=False)] *= _TIMES
    return {"normal": normal, OUTLIERS: with_outliers}
