"""What `make cpu` measured, as plain data that is looked up, and in ratios.

A ratio is one of a round, so that a slow moment of the machine hits both sides of it.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import targets
from benchmarks.targets import MAIN, Outcome
from codegemm.reporting import by

# What `kernel="auto"` takes, in the usual precision and with precision="fast": stands for a kernel's name.
AUTO, FAST = "auto", "auto_fast"
PSUMBOOK, PSUMBOOK_FAST = "psumbook", "psumbook_fast"
DENSE, TORCH_FP32, TORCH_BF16, AQLM, GGML = "dense", "torch_fp32", "dense_bf16", "aqlm_numba", "ggml"
WHOLE_MATRIX = (DENSE, TORCH_FP32, TORCH_BF16)  # dense products, the same for all weights of a shape
AQLM_CONFIG = targets.AQLM[1]
AUTO_THREADS = 2
FULL_ERROR, FAST_ERROR = 2e-4, 1.5e-2

Shape = tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """What it was measured on. path: the instruction set that the engine takes; best: the processor's best.
    disturbances: signs that others were at work meanwhile, in words."""

    device: str
    path: str
    best: str
    versions: dict[str, str]
    commit: str | None = None
    date: str = ""
    disturbances: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timed:
    """A kernel's product. config: empty for a dense one. seconds: of each round, the median of its calls.

    chosen, chosen_fast: whether `auto` takes this kernel, in the usual precision and with `fast`. error: the largest of
    all rounds, against float64.
    """

    shape: Shape
    threads: int
    kernel: str
    config: str
    batch: int
    seconds: tuple[float, ...]
    bytes_read: int
    chosen: bool
    chosen_fast: bool
    error: float

    @property
    def median(self) -> float:
        """Seconds of a round in the middle."""
        return statistics.median(self.seconds)

    def is_by(self, kernel: str) -> bool:
        """Whether it is that kernel's, or of the one that `auto` takes."""
        return {AUTO: self.chosen, FAST: self.chosen_fast}.get(kernel, self.kernel == kernel)


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


@dataclass
class Measured:
    """Everything. rows: of layers that are out of cache; small: of small ones; others: what was measured beside the
    products, held to its own targets; left_out: reasons by kernel."""

    rows: list[Timed] = field(default_factory=list)
    small: list[Timed] = field(default_factory=list)
    bandwidths: list[Bandwidth] = field(default_factory=list)
    accuracies: list[Accuracy] = field(default_factory=list)
    others: list[Outcome] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def shapes(self) -> list[Shape]:
        """In the order of the rows."""
        return list(dict.fromkeys(row.shape for row in self.rows))

    def find(self, shape: Shape, threads: int, kernel: str, config: str, batch: int) -> Timed | None:
        """The row of a kernel, or of the one that `auto` takes; of a dense product whatever the configuration."""
        wanted = (shape, threads, "" if kernel in WHOLE_MATRIX else config, batch)
        rows = (row for row in (*self.rows, *self.small) if row.is_by(kernel))
        return next((row for row in rows if (row.shape, row.threads, row.config, row.batch) == wanted), None)

    def ratios(self, row: Timed, kernel: str) -> list[float]:
        """How many times as fast as that kernel's product this one is, in each round; empty where there is none."""
        other = self.find(row.shape, row.threads, kernel, row.config, row.batch)
        return [] if other is None else [a / b for a, b in zip(other.seconds, row.seconds, strict=True)]

    def times(self, row: Timed, kernel: str) -> float | None:
        """The median of these."""
        ratios = self.ratios(row, kernel)
        return statistics.median(ratios) if ratios else None

    def share(self, row: Timed) -> float:
        """Bytes that the product reads a second, of those that its threads can read."""
        cell = (row.shape, row.threads)
        [read] = [each.rounds for each in self.bandwidths if (each.shape, each.threads) == cell]
        pairs = zip(row.seconds, read, strict=True)
        return statistics.median(row.bytes_read / seconds / bandwidth for seconds, bandwidth in pairs)

    def automatic(self) -> list[Timed]:
        """The products of `auto` that it is measured by, of the fewest rows of x first."""
        rows = [row for row in self.rows if row.chosen and row.threads == AUTO_THREADS and row.config in MAIN]
        return sorted(rows, key=lambda row: row.batch)

    def wrong(self) -> list[str]:
        """Products that err by more than is promised."""
        limits = ((row, FULL_ERROR if row.chosen else FAST_ERROR) for row in (*self.rows, *self.small)
                  if row.chosen or row.chosen_fast)  # fmt: skip
        return [
            *(f"{by(row.shape)} {row.config} {row.kernel} N={row.batch}: error {row.error:.1e}"
              for row, limit in limits if not row.error <= limit),
            *(f"{by(one.shape)} {one.config} {one.precision}, x {one.x}: error {one.error:.1e}"
              for one in self.accuracies if not one.error <= one.limit),
        ]  # fmt: skip


def read(path: Path) -> tuple[Machine, Measured]:
    """What a run of `make cpu` left; ValueError where a file is none."""
    try:
        return of_json(json.loads(path.read_text()))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: must be what `python -m benchmarks.cpu --json` wrote: {error!r}") from error


def of_json(data: dict[str, Any]) -> tuple[Machine, Measured]:
    """What `report.write` wrote. Older files tell neither the processor's best set nor what `fast` takes."""
    machine = data["machine"]
    measured = Measured(
        rows=_rows(data["rows"]),
        small=_rows(data.get("small", [])),
        bandwidths=[Bandwidth(**one | _tuples(one, "shape", "rounds")) for one in data["bandwidths"]],
        accuracies=[Accuracy(**_numbers(one) | _tuples(one, "shape")) for one in data["accuracies"]],
        others=[Outcome(**one) for one in data.get("others", [])],
        left_out=data["left_out"],
    )
    disturbances = tuple(machine.get("disturbances", ()))
    return Machine(**{"best": machine["path"]} | machine | {"disturbances": disturbances}), measured


def _rows(its: list[dict[str, Any]]) -> list[Timed]:
    return [
        Timed(**{"chosen_fast": one["kernel"] == PSUMBOOK_FAST} | _numbers(one) | _tuples(one, "shape", "seconds"))
        for one in its
    ]


def _numbers(data: dict[str, Any]) -> dict[str, Any]:
    """With what JSON has as null: an error that is no number, a limit where there is none."""
    beyond = {"error": math.nan, "limit": math.inf}
    return data | {name: number for name, number in beyond.items() if name in data and data[name] is None}


def _tuples(data: dict[str, Any], *names: str) -> dict[str, tuple[Any, ...]]:
    """JSON's lists."""
    return {name: tuple(data[name]) for name in names}
