"""What the CPU engine is to reach, as statements that measured times meet or miss: pure functions of what was measured.

A ratio is the median of the ratios of the rounds, so that a slow moment of the machine hits both sides of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from codegemm.comparison import targets
from codegemm.comparison.targets import MAIN, Outcome

AUTO, FULL, FAST = "auto", "psumbook", "psumbook_fast"
DENSE, TORCH_FP32, TORCH_BF16, AQLM = "dense", "torch_fp32", "dense_bf16", "aqlm_numba"
WHOLE_MATRIX = (DENSE, TORCH_FP32, TORCH_BF16)  # dense products, the same for all weights of a shape
AQLM_CONFIG = targets.AQLM[1]
AUTO_THREADS = 2
# Dense products that `auto` is measured by: times as fast it must be at least, up to so many rows of x.
AUTO_LEAST = {DENSE: (1 / 1.1, 512), TORCH_FP32: (1 / 1.1, 512), TORCH_BF16: (1.0, 16)}
FULL_ERROR, FAST_ERROR = 2e-4, 1.5e-2

Shape = tuple[int, int]
Cell = tuple[Shape, str]


@dataclass(frozen=True)
class Timed:
    """A kernel's product. config: empty for a dense one. seconds: of each round, the median of its calls.

    chosen: whether `auto` takes this kernel. error: the largest of all rounds, against float64.
    """

    shape: Shape
    threads: int
    kernel: str
    config: str
    batch: int
    seconds: tuple[float, ...]
    bytes_read: int
    chosen: bool
    error: float

    @property
    def median(self) -> float:
        """Seconds of a round in the middle."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second that so many threads read, in each round of the products of a shape."""

    shape: Shape
    threads: int
    rounds: tuple[float, ...]


@dataclass(frozen=True)
class Accuracy:
    """||y - y_ref|| / ||y_ref|| of one row of x, the largest of some. limit: None where nothing is promised."""

    precision: str
    x: str
    shape: Shape
    config: str
    error: float
    limit: float | None

    @property
    def is_met(self) -> bool | None:
        """None where nothing is promised."""
        return None if self.limit is None else self.error <= self.limit


@dataclass(frozen=True)
class Target:
    """The geometric mean over all shapes and `configs` of how many times as fast as `against` a kernel is, or, against
    nothing, of the share of the read bandwidth that it reaches.

    kernel: `auto` stands for the one that it takes. against: a kernel and its configuration.
    """

    kernel: str
    threads: int
    batch: int
    least: float
    against: tuple[str, str] | None = None
    configs: tuple[str, ...] = MAIN

    def __str__(self) -> str:
        precision = "fast" if self.kernel == FAST else "full"
        weights = "" if self.configs == MAIN else f", {', '.join(self.configs)}"
        product = f"{precision}, N = {self.batch}, {self.threads} thread{'s' * (self.threads > 1)}{weights}"
        return f"{product}: " + (f"times {self.against[0]}" if self.against else "share of the read bandwidth")


TARGETS = (
    Target(AUTO, 1, 1, 7, (DENSE, "")),
    Target(FAST, 1, 1, 15, (DENSE, "")),
    Target(AUTO, 2, 1, 0.52),
    Target(FAST, 2, 1, 0.85),
    Target(AUTO, 1, 1, 3, (AQLM, AQLM_CONFIG), (AQLM_CONFIG,)),
    Target(AUTO, 2, 4, 1.8, (TORCH_BF16, "")),
    Target(AUTO, 2, 16, 1.0, (TORCH_BF16, "")),
)


class Measured:
    """What was measured, looked up."""

    def __init__(self, rows: Sequence[Timed], bandwidths: Sequence[Bandwidth]) -> None:
        self.rows = rows
        self.shapes = tuple(dict.fromkeys(row.shape for row in rows))
        self._rows = {(row.shape, row.threads, row.kernel, row.config, row.batch): row for row in rows}
        self._chosen = {(row.shape, row.threads, row.config, row.batch): row for row in rows if row.chosen}
        self._bandwidths = {(bandwidth.shape, bandwidth.threads): bandwidth.rounds for bandwidth in bandwidths}

    def find(self, shape: Shape, threads: int, kernel: str, config: str, batch: int) -> Timed | None:
        """The row of a kernel, or of the one that `auto` takes."""
        if kernel == AUTO:
            return self._chosen.get((shape, threads, config, batch))
        return self._rows.get((shape, threads, kernel, config, batch))

    def times(self, row: Timed, kernel: str, config: str = "") -> float | None:
        """How many times as fast as that kernel's product this one is."""
        other = self.find(row.shape, row.threads, kernel, config, row.batch)
        return None if other is None else median_ratio(other.seconds, row.seconds)

    def share(self, row: Timed) -> float:
        """Bytes that the product reads a second, of those that its threads can read."""
        bandwidth = self._bandwidths[row.shape, row.threads]
        return median_ratio([row.bytes_read / seconds for seconds in row.seconds], bandwidth)

    def cells(self, target: Target) -> dict[Cell, float | None]:
        """What each shape and configuration reaches; None where something was not measured."""
        return {
            (shape, config): self._cell(target, shape, config) for shape in self.shapes for config in target.configs
        }

    def _cell(self, target: Target, shape: Shape, config: str) -> float | None:
        row = self.find(shape, target.threads, target.kernel, config, target.batch)
        if row is None:
            return None
        return self.share(row) if target.against is None else self.times(row, *target.against)

    def outcome(self, target: Target) -> Outcome:
        """The geometric mean of all cells, where there is a number in each."""
        cells = list(self.cells(target).values())
        numbers = [cell for cell in cells if cell is not None]
        mean = statistics.geometric_mean(numbers) if numbers and len(numbers) == len(cells) else None
        return Outcome(str(target), mean, target.least)

    def automatic(self) -> list[Timed]:
        """The products of `auto` that it is measured by."""
        rows = [row for row in self.rows if row.chosen and row.threads == AUTO_THREADS and row.config in MAIN]
        return sorted(rows, key=lambda row: row.batch)

    def worst_automatic(self) -> list[Outcome]:
        """For each dense product the slowest of `auto`'s in its terms."""
        return [self._worst(against, least, most) for against, (least, most) in AUTO_LEAST.items()]

    def _worst(self, against: str, least: float, most: int) -> Outcome:
        ratios = [(self.times(row, against), row) for row in self.automatic() if row.batch <= most]
        pairs = [(ratio, row) for ratio, row in ratios if ratio is not None]
        statement = f"auto, N up to {most}, {AUTO_THREADS} threads, the slowest: times {against}"
        if not pairs:
            return Outcome(statement, None, least)
        ratio, row = min(pairs, key=lambda pair: pair[0])
        where = f"{row.kernel}, N = {row.batch}, {row.shape[0]} x {row.shape[1]}, {row.config}"
        return Outcome(f"{statement} ({where})", ratio, least)


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
