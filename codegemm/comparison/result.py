"""What a comparison finds, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from codegemm.kernel import Cost
from codegemm.measuring.bounds import bound
from codegemm.measuring.machine import Machine
from codegemm.measuring.stopwatch import varies

__all__ = ["Result", "Row"]

FORMAT = 2  # of the JSON


@dataclass(frozen=True)
class Row:
    """One kernel, weight and batch.

    path: which code of the kernel, like the instruction set that it is compiled for; empty where there is but one.
    config: the weight's configuration; empty for a dense product. seconds: of one product, the median of `rounds`,
    which has that of each round (empty where products were not timed in rounds); quartiles: of the same. calls:
    products or replays that were timed; timed: `graph` or `calls`, as `Timing.how`. bandwidth_share: bytes read a
    second, of the machine's bandwidth. times_dense: how many times as fast as `dense`; None where that is unknown.
    error: ||y - y_ref|| / ||y_ref||, with y_ref the product with the dequantised weight in float64; tolerance: what the
    kernel promises of it. error_to_original: the same, with y_ref the product with the matrix that was quantised.
    chosen: whether `auto` takes this kernel. bound_seconds: the least time by the product's cost, whose counts
    follow, and the machine's rates; bound: which of these takes it (`measuring.bounds`).
    """

    case: str
    shape: tuple[int, int]
    kernel: str
    precision: str
    path: str
    config: str
    bits_per_weight: float
    batch: int
    seconds: float
    quartiles: tuple[float, float]
    rounds: tuple[float, ...]
    calls: int
    timed: str
    bytes_read: int
    bandwidth_share: float
    times_dense: float | None
    error: float
    tolerance: float
    error_to_original: float | None
    chosen: bool
    bytes_written: int = 0
    multiply_adds: int = 0
    lookups: int = 0
    bound: str = ""
    bound_seconds: float = 0

    def held_against(self, machine: Machine) -> Row:
        """With shares and bounds by what the machine does in a second."""
        cost = Cost(self.bytes_read, self.bytes_written, self.multiply_adds, self.lookups)
        seconds, name = bound(cost, machine.rates)
        share = self.bytes_read / self.seconds / machine.bandwidth
        return replace(self, bandwidth_share=share, bound=name, bound_seconds=seconds)

    @property
    def wrong(self) -> bool:
        """Whether the error exceeds what the kernel promises, or is no number."""
        return not self.error <= self.tolerance

    @property
    def noisy(self) -> bool:
        """Whether the rounds differ so much that the median says little."""
        return varies(self.seconds, self.quartiles)


@dataclass(frozen=True)
class Failure:
    """A kernel that raised an error instead of multiplying; batch: None where it failed for all of them."""

    case: str
    kernel: str
    path: str
    config: str
    batch: int | None
    error: str


@dataclass
class Result:
    """Everything that a comparison found.

    left_out: kernels that measured nothing, with the reason; skipped: configurations, by case. settings: how it was
    asked for: seconds, rounds, batches, and the dtype of x.
    """

    machine: Machine
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    failed: list[Failure] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def wrong(self) -> list[Row]:
        """Rows whose kernels don't keep their promise."""
        return [row for row in self.rows if row.wrong]

    @property
    def noisy(self) -> list[Row]:
        """Rows whose times say little."""
        return [row for row in self.rows if row.noisy]

    def measure_bandwidth(self) -> None:
        """Once more; shares are told anew of the largest."""
        self.machine = self.machine.again()
        self.rows = [row.held_against(self.machine) for row in self.rows]

    def by_case(self) -> dict[str, list[Row]]:
        """The rows of each case, in order."""
        cases: dict[str, list[Row]] = {}
        for row in self.rows:
            cases.setdefault(row.case, []).append(row)
        return cases

    @property
    def paths(self) -> list[str]:
        """The instruction sets that were measured; none on a GPU."""
        return list(dict.fromkeys(row.path for row in self.rows if row.path))

    def label(self, row: Row) -> tuple[str, ...]:
        """What tells a row from others of its case and batch: kernel, path where there are several, configuration."""
        return (row.kernel, *[row.path] * (len(self.paths) > 1), row.config)

    def as_json(self) -> dict[str, Any]:
        """Everything, unrounded, as plain data."""
        rows = [asdict(row) | {"wrong": row.wrong, "noisy": row.noisy} for row in self.rows]
        told = asdict(self) | {"machine": self.machine.as_json()}
        return {"format": FORMAT, **told, "rows": rows, "disturbances": self.machine.disturbances()}
