"""What the CPU engine is to reach, as statements that measured times meet or miss: pure functions of what was measured.

A ratio is the median of the ratios of the rounds, so that a slow moment of the machine hits both sides of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks import targets
from benchmarks.targets import MAIN, Outcome
from codegemm.reporting import by, counted

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
    """||y - y_ref|| / ||y_ref|| of one row of x, the largest of some."""

    precision: str
    x: str
    shape: Shape
    config: str
    error: float
    limit: float


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
        product = f"{precision}, N = {self.batch}, {counted(self.threads, 'thread')}{weights}"
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


@dataclass
class Measured:
    """Everything that was measured, as plain data, looked up. left_out: reasons by kernel."""

    rows: list[Timed] = field(default_factory=list)
    bandwidths: list[Bandwidth] = field(default_factory=list)
    accuracies: list[Accuracy] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def shapes(self) -> list[Shape]:
        """In the order of the rows."""
        return list(dict.fromkeys(row.shape for row in self.rows))

    def find(self, shape: Shape, threads: int, kernel: str, config: str, batch: int) -> Timed | None:
        """The row of a kernel, or of the one that `auto` takes."""
        wanted = (shape, threads, config, batch)
        rows = (row for row in self.rows if (row.shape, row.threads, row.config, row.batch) == wanted)
        return next((row for row in rows if (row.chosen if kernel == AUTO else row.kernel == kernel)), None)

    def times(self, row: Timed, kernel: str, config: str = "") -> float | None:
        """How many times as fast as that kernel's product this one is."""
        other = self.find(row.shape, row.threads, kernel, config, row.batch)
        return None if other is None else median_ratio(other.seconds, row.seconds)

    def share(self, row: Timed) -> float:
        """Bytes that the product reads a second, of those that its threads can read."""
        cell = (row.shape, row.threads)
        [read] = [each.rounds for each in self.bandwidths if (each.shape, each.threads) == cell]
        return median_ratio([row.bytes_read / seconds for seconds in row.seconds], read)

    def cells(self, target: Target) -> dict[Cell, float | None]:
        """What each shape and configuration reaches; None where something was not measured."""
        rows = {
            (shape, config): self.find(shape, target.threads, target.kernel, config, target.batch)
            for shape in self.shapes
            for config in target.configs
        }
        reached = self.share if target.against is None else lambda row: self.times(row, *target.against)
        return {cell: None if row is None else reached(row) for cell, row in rows.items()}

    def outcome(self, target: Target) -> Outcome:
        """The geometric mean of all cells, where there is a number in each."""
        cells = list(self.cells(target).values())
        numbers = [cell for cell in cells if cell is not None]
        mean = statistics.geometric_mean(numbers) if numbers and numbers == cells else None
        return Outcome(str(target), mean, target.least)

    def automatic(self) -> list[Timed]:
        """The products of `auto` that it is measured by."""
        rows = [row for row in self.rows if row.chosen and row.threads == AUTO_THREADS and row.config in MAIN]
        return sorted(rows, key=lambda row: row.batch)

    def worst_automatic(self) -> list[Outcome]:
        """For each dense product the slowest of `auto`'s in its terms."""
        outcomes = []
        for against, (least, most) in AUTO_LEAST.items():
            ratios = ((self.times(row, against), row) for row in self.automatic() if row.batch <= most)
            told = [
                (ratio, f" ({row.kernel}, N = {row.batch}, {by(row.shape)}, {row.config})")
                for ratio, row in ratios
                if ratio is not None
            ]
            slowest, where = min(told, key=lambda pair: pair[0], default=(None, ""))
            statement = f"auto, N up to {most}, {AUTO_THREADS} threads, the slowest: times {against}{where}"
            outcomes.append(Outcome(statement, slowest, least))
        return outcomes

    def outcomes(self) -> list[Outcome]:
        """Of every target of speed."""
        return [*map(self.outcome, TARGETS), *self.worst_automatic()]

    def wrong(self) -> list[str]:
        """Products that err by more than is promised."""
        return [
            *(f"{by(row.shape)} {row.config} {row.kernel} N={row.batch}: error {row.error:.1e}" for row in self.rows
              if row.chosen and not row.error <= FULL_ERROR),
            *(f"{by(one.shape)} {one.config} {one.precision}, x {one.x}: error {one.error:.1e}"
              for one in self.accuracies if not one.error <= one.limit),
        ]  # fmt: skip


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
