"""Measures all candidates of all matrices; Ctrl-C ends it with what there is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import le
from typing import Any

from codegemm.exploration.candidates import candidates, others
from codegemm.exploration.matrices import Matrix
from codegemm.exploration.measure import Bench, Measured, Settings
from codegemm.formats.format import spec_of
from codegemm.kernel import Product
from codegemm.measuring import conditions, memory
from codegemm.quantize import configured
from codegemm.quantize.progress import Progress
from codegemm.registry import registered
from codegemm.reporting import by


def pareto(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """For each point whether it is on the Pareto front; less is better in every coordinate.

    It is unless another point is at most as large in all coordinates and less in one. Equal points stand together.
    """
    return [not any(other != point and all(map(le, other, point)) for other in points) for point in points]


@dataclass
class Explored:
    """One matrix: what was measured, and the candidates that it can't be quantised by, with the reason."""

    name: str
    shape: tuple[int, int]
    calibrated: bool
    measured: list[Measured] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def dense_seconds(self) -> float:
        """Of the dense product: the median over all candidates' turns, so that one bad moment decides nothing."""
        return statistics.median(one.dense_seconds for one in self.measured)

    def by_size(self) -> list[tuple[Measured, bool]]:
        """Each with whether it is on the Pareto front of size, error and time; the smallest first."""
        marked = zip(self.measured, pareto([one.point for one in self.measured]))
        return sorted(marked, key=lambda pair: pair[0].point)


@dataclass
class Exploration:
    """Everything that was found, as plain data. unfinished: candidates that Ctrl-C left unmeasured."""

    settings: Settings
    device: str
    threads: int
    matrices: list[Explored] = field(default_factory=list)
    unfinished: int = 0


def run(
    matrices: Sequence[Matrix], bits: Sequence[float], rotate: bool, settings: Settings, progress: Progress
) -> Exploration:
    """Measure the candidates of every matrix. What is finished is in the cache, whatever comes after.

    bits: budgets. rotate: every configuration with a rotation, too. Before anything is measured: ValueError where there
    are no candidates for a matrix, MemoryError where there is too little memory for the dense product with it.
    """
    chosen = [_candidates(matrix, bits, rotate) for matrix in matrices]
    for matrix, configs in zip(matrices, chosen):
        _check_memory(matrix, configs[0], settings)
    result = Exploration(settings, *conditions.machine(settings.engine), unfinished=sum(map(len, chosen)))
    progress.total(result.unfinished)
    try:
        for matrix, configs in zip(matrices, chosen):
            explored = Explored(matrix.name, matrix.values.shape, matrix.calibration is not None)
            result.matrices.append(explored)
            bench = Bench(matrix, settings)
            for config in configs:
                progress.name(f"exploring {config}")
                try:
                    explored.measured.append(bench.measure(config))
                except ValueError as error:
                    explored.skipped[config] = str(error)
                result.unfinished -= 1
                progress.advance()
    except KeyboardInterrupt:
        pass
    return result


def _check_memory(matrix: Matrix, config: str, settings: Settings) -> None:
    """MemoryError where the dense product, which all others are measured beside, has no room."""
    spec = spec_of(matrix.values.shape, config)
    product = Product.of(spec, settings.rows, settings.dtype)
    dense = next(kernel for kernel in registered(settings.device.engine, spec) if kernel.name == "dense")
    memory.check(matrix.name, [(dense, product)], settings.device, made=0, beside=product.x_bytes)


def _candidates(matrix: Matrix, bits: Sequence[float], rotate: bool) -> list[str]:
    shape, calibrated = matrix.values.shape, matrix.calibration is not None
    configs = [*candidates(shape, bits), *others(shape, bits)]
    turns = (False, True) if rotate else (False,)
    texts = [_text(config, turned, calibrated) for config in configs for turned in turns]
    made = [text for text in texts if text is not None]
    if not made:
        raise ValueError(
            f"{matrix.name}: no configuration stores {by(shape)} in about {', '.join(f'{b:g}' for b in bits)} bits "
            "a weight: in_features must be even, and codebooks may not outweigh the codes of a small matrix"
        )
    return made


def _text(config: Any, rotate: bool, calibrated: bool) -> str | None:
    """Of the configuration to quantise to; None where no quantiser makes it: some formats have none, rotate on their
    own or heed no calibration."""
    try:
        return str(configured(config, rotate, calibrated=calibrated))
    except ValueError:
        return None
