"""Measures all candidates of all matrices; Ctrl-C ends it with what there is."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from codegemm import tables
from codegemm.engines.cpu import get_num_threads
from codegemm.exploration.candidates import Candidate, candidates
from codegemm.exploration.front import pareto
from codegemm.exploration.matrices import Matrix
from codegemm.exploration.measure import Bench, Measured, Settings
from codegemm.quantize.progress import Progress


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


def choose(matrices: Sequence[Matrix], bits: Sequence[float], rotate: bool) -> dict[str, list[Candidate]]:
    """The candidates of each matrix by its name; ValueError where there are none for one of them."""
    chosen = {}
    for matrix in matrices:
        configs = candidates(matrix.shape, bits)
        if not configs:
            budgets = ", ".join(f"{budget:g}" for budget in bits)
            raise ValueError(
                f"{matrix.name}: no configuration stores {matrix.shape[0]} x {matrix.shape[1]} in about {budgets} bits "
                "a weight: in_features must be even, and codebooks may not outweigh the codes of a small matrix"
            )
        turns = (False, True) if rotate else (False,)
        chosen[matrix.name] = [Candidate(config, rotated) for config in configs for rotated in turns]
    return chosen


def run(
    matrices: Sequence[Matrix], chosen: Mapping[str, Sequence[Candidate]], settings: Settings, progress: Progress
) -> Exploration:
    """Measure `chosen` candidates of every matrix. What is finished is in the cache, whatever comes after."""
    threads = get_num_threads() if settings.engine == "cpu" else 1
    result = Exploration(settings, tables.MACHINES[settings.engine].identity(settings.device)[0], threads)
    result.unfinished = sum(map(len, chosen.values()))
    progress.total(result.unfinished)
    try:
        for matrix in matrices:
            explored = Explored(matrix.name, matrix.shape, matrix.calibration is not None)
            result.matrices.append(explored)
            bench = Bench(matrix, settings)
            for candidate in chosen[matrix.name]:
                progress.name(f"exploring {candidate}")
                try:
                    explored.measured.append(bench.measure(candidate))
                except ValueError as error:
                    explored.skipped[str(candidate)] = str(error)
                result.unfinished -= 1
                progress.advance()
    except KeyboardInterrupt:
        pass
    return result
