"""Runs a comparison: every case, weight, kernel and batch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from codegemm.comparison import rounds
from codegemm.comparison.bench import Bench, error_to
from codegemm.comparison.result import Failure, Result, Row
from codegemm.comparison.selection import DENSE, Entry, entry, refusals
from codegemm.devices import Device
from codegemm.kernel import Kernel
from codegemm.measuring import conditions, memory
from codegemm.measuring.accuracy import exact
from codegemm.measuring.machine import Machine
from codegemm.measuring.sources import Case
from codegemm.measuring.stopwatch import Candidate
from codegemm.quantize.progress import Progress


class NothingToMeasure(ValueError):
    """What was asked for leaves no product; the message says why."""


@dataclass(frozen=True)
class Settings:
    """What is measured: kernels of one engine on every path, batches (rows of x), and how long: `seconds` for one
    kernel, weight and batch, in so many rounds."""

    engine: str
    kernels: Sequence[Kernel]
    paths: Sequence[str]
    batches: Sequence[int]
    seconds: float
    rounds: int

    @property
    def device(self) -> Device:
        """Where weights are."""
        return Device.parse(self.engine)

    @property
    def dtype(self) -> np.dtype:
        """Of x."""
        return conditions.dtype_of(self.engine)


def run(cases: Sequence[Case], settings: Settings, progress: Progress) -> Result:
    """Measure every case.

    Raises NothingToMeasure where no kernel multiplies any of the weights, and MemoryError where there is too little
    memory for one of the cases; both before anything is measured.
    """
    failed: list[Failure] = []
    planned = [(case, list(_entries(case, settings, failed))) for case in cases]
    left_out = _left_out(planned, settings, {each.kernel for each in failed})
    if not failed and not any(its for _, its in planned):
        reasons = {f"{name}: {reason}" for name, reason in left_out.items()}
        reasons |= {f"{config}: {reason}" for case in cases for config, reason in case.skipped.items()}
        raise NothingToMeasure(f"nothing to measure: {'; '.join(sorted(reasons)) or 'no kernel'}")
    return measure(planned, settings, progress, left_out, failed)


def measure(
    planned: Sequence[tuple[Case, Sequence[Entry]]],
    settings: Settings,
    progress: Progress,
    left_out: dict[str, str] | None = None,
    failed: Sequence[Failure] = (),
) -> Result:
    """Measure what was planned, entries of each case; left_out, failed: what the plan has to tell.

    Raises MemoryError where there is too little memory for one of the cases, before anything is measured.
    """
    for case, its in planned:
        _check_memory(case, its, settings)
    progress.total(sum(len(its) + settings.rounds for _, its in planned))
    asked = {"seconds": settings.seconds, "rounds": settings.rounds, "batches": settings.batches}
    asked |= {"dtype": settings.dtype.name}
    machine = Machine.here(settings.engine, settings.paths)
    result = Result(machine, left_out=left_out or {}, failed=list(failed), settings=asked)
    for case, its in planned:
        if case.skipped:
            result.skipped[case.title] = case.skipped
        if its:
            result.rows += _measure(case, its, settings, result, progress)
    result.measure_bandwidth()
    return result


def _entries(case: Case, settings: Settings, failed: list[Failure]) -> Iterator[Entry]:
    """What can be measured of a case, kernel by kernel; a dense one with the first weight alone, and a kernel that is
    the same on all paths on the first."""
    for path in settings.paths:
        with conditions.path(path):
            for kernel in settings.kernels:
                for config in case.configs:
                    try:
                        found = entry(case, config, kernel, settings.batches, settings.dtype, settings.device, path)
                    except Exception as error:  # as in the rounds
                        failed.append(_failure(case, kernel, "", config, None, error))
                        continue
                    if found and (found.path or path == settings.paths[0]):
                        yield found
                    if found and kernel.name in DENSE:
                        break


def _failure(case: Case, kernel: Kernel, path: str, config: str, batch: int | None, error: BaseException) -> Failure:
    [said, *_] = [*str(error).splitlines(), ""]
    return Failure(case.title, kernel.name, path, config, batch, f"{type(error).__name__}: {said}")


def _left_out(
    planned: Sequence[tuple[Case, list[Entry]]], settings: Settings, failed: Collection[str]
) -> dict[str, str]:
    """Kernels that multiply none of the weights, with the reasons."""
    used = {entry.kernel.name for _, its in planned for entry in its} | set(failed)
    specs = [case.spec(config) for case, _ in planned for config in case.configs]
    return {
        kernel.name: kernel.unavailable() or refusals(kernel, specs, settings.batches, settings.dtype, settings.device)
        for kernel in settings.kernels
        if kernel.name not in used
    }


def _batches(its: Sequence[Entry]) -> list[int]:
    """All that entries have."""
    return sorted({product.n for each in its for product in each.products})


def _check_memory(case: Case, its: Sequence[Entry], settings: Settings) -> None:
    """MemoryError where a case can't be measured, with a lower bound of what it takes: every kernel has its own form of
    every weight at the same time."""
    (m, k), most = case.shape, max(_batches(its), default=1)
    x_bytes, truth_bytes = settings.dtype.itemsize * most * k, 8 * most * m  # the truth in float64
    if case.original is not None:
        memory.ensure(f"{case.title}: its outputs in float64", x_bytes + truth_bytes + 8 * m * k)
    configs = list(dict.fromkeys(each.config for each in its))
    needed = sum(case.spec(config).packed_bits // 8 for config in configs) + memory.total([each.taken for each in its])
    made = x_bytes + max(map(case.least_bytes, configs), default=0)
    what = f"{case.title}, {', '.join(configs)}"
    memory.ensure_both(what, needed, settings.device, made, x_bytes + len(configs) * truth_bytes)


def _measure(case: Case, its: Sequence[Entry], settings: Settings, result: Result, progress: Progress) -> list[Row]:
    """The rows of a case: dense products first, then those of each weight."""
    bench, device = Bench(case, _batches(its), result.machine), settings.device
    weights, errors = {}, {}
    for config in dict.fromkeys(each.config for each in its):
        host = case.weight(config)
        errors[config], weights[config] = error_to(exact(host, bench.x)), host.to(device)

    def fail(entry: Entry, batch: int | None, error: BaseException) -> None:
        result.failed.append(_failure(case, entry.kernel, entry.path, entry.config, batch, error))

    timed: list[rounds.Timed] = []
    for each in its:
        batches = [product.n for product in each.products]
        try:
            candidate = Candidate(each.kernel, weights[each.config], batches, settings.dtype, len(its) - 1)
            timed += rounds.prepared(each, candidate, bench.x)
        except (Exception, SystemExit) as error:  # as in the rounds
            fail(each, None, error)
        progress.advance()
    through = rounds.run(
        timed,
        bench.x,
        settings.rounds,
        settings.seconds,
        lambda one, error: fail(one.entry, one.product.n, error),
        progress.advance,
    )
    rows = []
    for one in through:
        entry = one.entry
        try:
            with conditions.path(entry.instructions):
                y, measure = one.ready.result(), errors[entry.config]
                rows.append(
                    bench.row(entry.kernel, one.product, device, entry.config, one.timing, y, measure, entry.path)
                )
        except (Exception, SystemExit) as error:
            fail(entry, one.product.n, error)
    places = {config: place for place, config in enumerate(case.configs)}
    return sorted(rows, key=lambda row: -math.inf if row.kernel in DENSE else places[row.config])
