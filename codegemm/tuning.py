"""Measures the kernels that `auto` may take on this machine, and keeps which was the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codegemm import dispatch, tables
from codegemm.choice import Choice
from codegemm.comparison import measure
from codegemm.comparison.measure import Candidate
from codegemm.comparison.sources import Case
from codegemm.formats.names import name_of
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel
from codegemm.quantize.progress import Progress


@dataclass(frozen=True)
class Measured:
    """A product's kernels with their median seconds, the fastest first, and what was chosen before."""

    choice: Choice
    seconds: dict[str, float]
    before: str


def tune(
    cases: Sequence[Case], batches: Sequence[int], device: str, dtype: np.dtype, budget: float, progress: Progress
) -> tuple[list[Measured], Path]:
    """Measure every case, configuration and batch, store the fastest kernels for `device` and say in which file.

    dtype: of x. budget: seconds for one kernel and batch. Products look up what was stored from then on. Raises
    PermissionError where the cache can't be written to.
    """
    batches = sorted(set(batches))
    progress.total(sum(len(case.configs) for case in cases))
    found: list[Measured] = []
    for case in cases:
        for config in case.configs:
            found += _measure(case.weight(config).to(device), batches, dtype, budget)
            progress.advance()
    place = tables.save(device, [measured.choice for measured in found])
    dispatch.choose_anew()
    return found, place


def _measure(weight: Weight, batches: Sequence[int], dtype: np.dtype, budget: float) -> list[Measured]:
    spec, device = weight.spec, weight.device
    x = measure.inputs(spec.in_features, max(batches), dtype)
    seconds: dict[int, dict[str, float]] = {n: {} for n in batches}
    # One kernel after the other, so that only one holds copies of the weight.
    for registered in dispatch.registered(device.partition(":")[0]):
        kernel = dispatch.kernel_for(registered, spec)
        fitting = [n for n in batches if _may_be_chosen(kernel, weight, n, dtype)]
        if not fitting:
            continue
        candidate = Candidate(kernel, weight, fitting, dtype)
        for n in fitting:
            seconds[n][kernel.name] = candidate.measure(x[:n], budget)[1].median
    return [
        Measured(
            Choice(name_of(spec), spec.shape, (n, n), dtype.name, min(times, key=lambda name: times[name])),
            dict(sorted(times.items(), key=lambda item: item[1])),
            dispatch.select(spec, n, dtype, device).name,
        )
        for n, times in seconds.items()
        if times
    ]


def _may_be_chosen(kernel: Kernel, weight: Weight, n: int, dtype: np.dtype) -> bool:
    refused = kernel.unavailable() or kernel.supports(weight.spec, n, dtype, weight.device)
    return kernel.is_automatic(n, dtype) and not refused
