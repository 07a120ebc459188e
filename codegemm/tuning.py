"""Measures the kernels that `auto` may take on this machine, and keeps which was the fastest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codegemm import choice, tables
from codegemm.devices import Device
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Kernel, Product
from codegemm.measuring import memory
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
    PermissionError where the cache can't be written to; MemoryError, before anything is measured, where there is too
    little memory for one of the cases.
    """
    batches = sorted(set(batches))
    for case in cases:
        for config in case.configs:
            spec = case.spec(config)
            timed = ((kernel, p) for kernel, fitting in _kernels(spec, batches, device, dtype) for p in fitting)
            x_bytes = Product.of(spec, batches[-1], dtype).x_bytes
            memory.check(f"{case.title}, {config}", timed, device, case.least_bytes(config), x_bytes)
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
    for kernel, products in _kernels(spec, batches, device, dtype):
        fitting = [product.n for product in products]
        candidate = Candidate(kernel, weight, fitting, dtype)
        for n in fitting:
            seconds[n][kernel.name] = candidate.measure(x[:n], budget)[1].median
    return [
        Measured(
            Choice(spec.name, spec.shape, (n, n), dtype.name, min(times, key=lambda name: times[name])),
            dict(sorted(times.items(), key=lambda item: item[1])),
            choice.select(Product.of(spec, n, dtype), device).name,
        )
        for n, times in seconds.items()
        if times
    ]


def _kernels(
    spec: Spec, batches: Sequence[int], device: Device, dtype: np.dtype
) -> Iterator[tuple[Kernel, list[Product]]]:
    """Those that `auto` may choose, each with the products that it may choose it for."""
    products = [Product.of(spec, n, dtype) for n in batches]
    for kernel in registered(device.engine, spec):
        fitting = [p for p in products if kernel.is_automatic(p) and not refusal(kernel, p, device)]
        if fitting:
            yield kernel, fitting
