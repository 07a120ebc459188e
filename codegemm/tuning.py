"""Measures the kernels that `auto` may take on this machine, and keeps which was the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codegemm import choice, tables
from codegemm.devices import Device
from codegemm.formats.weight import Weight
from codegemm.kernel import Product
from codegemm.measuring.accuracy import inputs
from codegemm.measuring.sources import Case
from codegemm.measuring.stopwatch import Candidate
from codegemm.quantize.progress import Progress
from codegemm.registry import refusal, registered
from codegemm.tables import Choice


@dataclass(frozen=True)
class Measured:
    """A product's kernels with their median seconds, the fastest first, and what was chosen before."""

    choice: Choice
    seconds: dict[str, float]
    before: str


def tune(
    cases: Sequence[Case], batches: Sequence[int], device: Device, dtype: np.dtype, budget: float, progress: Progress
) -> tuple[list[Measured], Path]:
    """Measure every case, configuration and batch, store the fastest kernels for `device` and say in which file.

    dtype: of x. budget: seconds for one kernel and batch. Products look up what was stored from then on. Raises
    PermissionError where the cache can't be written to.
    """
    batches = sorted(set(batches))
    progress.total(sum(len(case.configs) for case in cases))
    measured: list[Measured] = []
    for case in cases:
        for config in case.configs:
            measured += _measure(case.weight(config).to(device), batches, dtype, budget)
            progress.advance()
    place = tables.save(device, [each.choice for each in measured])
    choice.choose_anew()
    return measured, place


def _measure(weight: Weight, batches: Sequence[int], dtype: np.dtype, budget: float) -> list[Measured]:
    spec, device = weight.spec, weight.device
    x = inputs(spec.in_features, max(batches), dtype)
    seconds: dict[int, dict[str, float]] = {n: {} for n in batches}
    # One kernel after the other, so that only one holds copies of the weight.
    products = {n: Product.of(spec, n, dtype) for n in batches}
    for kernel in registered(device.engine, spec):
        fitting = [n for n, p in products.items() if kernel.is_automatic(p) and not refusal(kernel, p, device)]
        if not fitting:
            continue
        candidate = Candidate(kernel, weight, fitting, dtype)
        for n in fitting:
            seconds[n][kernel.name] = candidate.measure(x[:n], budget)[1].median
    return [
        Measured(
            Choice(spec.name, spec.shape, (n, n), dtype.name, min(times, key=lambda name: times[name])),
            dict(sorted(times.items(), key=lambda item: item[1])),
            choice.select(products[n], device).name,
        )
        for n, times in seconds.items()
        if times
    ]
