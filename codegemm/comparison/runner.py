"""Runs a comparison: every case, weight, kernel and batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codegemm.comparison import rounds
from codegemm.comparison.bench import Bench, error_to
from codegemm.comparison.result import Result, Row
from codegemm.comparison.selection import DENSE, Entry, entries, refusals
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
    planned = [
        (case, list(entries(case, settings.kernels, settings.batches, settings.dtype, settings.device, settings.paths)))
        for case in cases
    ]
    left_out = _left_out(planned, settings)
    if not any(its for _, its in planned):
        reasons = {f"{name}: {reason}" for name, reason in left_out.items()}
        reasons |= {f"{config}: {reason}" for case in cases for config, reason in case.skipped.items()}
        raise NothingToMeasure(f"nothing to measure: {'; '.join(sorted(reasons)) or 'no kernel'}")
    for case, its in planned:
        _check_memory(case, its, settings)
    progress.total(sum(len(its) + settings.rounds for _, its in planned))
    result = Result(Machine.here(settings.engine), left_out=left_out)
    for case, its in planned:
        if case.skipped:
            result.skipped[case.title] = case.skipped
        result.rows += _measure(case, its, settings, result, progress)
    result.measure_bandwidth()
    return result


def _left_out(planned: Sequence[tuple[Case, list[Entry]]], settings: Settings) -> dict[str, str]:
    """Kernels that multiply none of the weights, with the reasons."""
    used = {entry.kernel.full_name for _, its in planned for entry in its}
    specs = [case.spec(config) for case, _ in planned for config in case.configs]
    return {
        kernel.name: kernel.unavailable() or refusals(kernel, specs, settings.batches, settings.dtype, settings.device)
        for kernel in settings.kernels
        if kernel.full_name not in used
    }


def _check_memory(case: Case, its: Sequence[Entry], settings: Settings) -> None:
    """MemoryError where a case can't be measured, with a lower bound of what it takes: every kernel has its own form of
    every weight at the same time."""
    (m, k), most = case.shape, max(settings.batches)
    x_bytes, truth_bytes = settings.dtype.itemsize * most * k, 8 * most * m  # the truth in float64
    if case.original is not None:
        memory.ensure(f"{case.title}: its outputs in float64", x_bytes + truth_bytes + 8 * m * k)
    configs = [config for config in case.configs if any(entry.config == config for entry in its)]
    weights = sum(case.spec(config).packed_bits // 8 for config in configs)
    forms = (max(memory.taken(entry.kernel, product, settings.device) for product in entry.products) for entry in its)
    made = x_bytes + max(map(case.least_bytes, configs), default=0)
    what = f"{case.title}, {', '.join(configs)}"
    memory.ensure_both(what, weights + sum(forms), settings.device, made, x_bytes + len(configs) * truth_bytes)


def _measure(case: Case, its: Sequence[Entry], settings: Settings, result: Result, progress: Progress) -> list[Row]:
    """The rows of a case: dense products first, then those of each weight."""
    bench, device = Bench(case, settings.batches, result.machine), settings.device
    weights, errors = {}, {}
    for config in dict.fromkeys(entry.config for entry in its):
        host = case.weight(config)
        errors[config], weights[config] = error_to(exact(host, bench.x)), host.to(device)

    def fail(entry: Entry, error: Exception) -> None:
        result.failed[f"{entry.kernel.name} {entry.config}"] = f"{type(error).__name__}: {error}"
        failed.append(entry)

    timed: list[rounds.Timed] = []
    failed: list[Entry] = []
    for entry in its:
        batches = [product.n for product in entry.products]
        try:
            candidate = Candidate(entry.kernel, weights[entry.config], batches, settings.dtype, len(its))
            timed += rounds.prepared(entry, candidate, bench.x)
        except Exception as error:  # as in the rounds
            fail(entry, error)
        progress.advance()
    rounds.run(timed, settings.rounds, settings.seconds, fail, progress.advance)
    rows = [
        bench.row(
            each.entry.kernel, each.product, device, each.entry.config, each.timing, each.ready.result(),
            errors[each.entry.config], each.path,
        )
        for each in timed
        if each.entry not in failed
    ]  # fmt: skip
    places = {config: place for place, config in enumerate(case.configs)}
    return sorted(rows, key=lambda row: -math.inf if row.kernel in DENSE else places[row.config])
