"""What a comparison finds, as plain data."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field, replace

import numpy as np

from codegemm.measuring import conditions
from codegemm.version import __version__


@dataclass(frozen=True)
class Machine:
    """What the numbers were measured on. bandwidths: bytes a second that the processor reads or a GPU's copy moves,
    before and after all else; bandwidth: the larger, of which shares are told."""

    engine: str
    device: str
    threads: int
    bandwidth: float
    version: str = __version__
    numpy: str = np.__version__
    python: str = platform.python_version()
    bandwidths: tuple[float, ...] = ()

    @classmethod
    def here(cls, engine: str) -> Machine:
        """This machine, its bandwidth measured now."""
        return cls(engine, *conditions.machine(engine), conditions.bandwidth(engine))


@dataclass(frozen=True)
class Row:
    """One kernel, weight and batch. seconds: the median; timed: as `Timing.how`; error: against the dequantised weight
    in float64.

    path: the instruction set that a CPU kernel was compiled for, empty on a GPU; config: empty for a dense product;
    bandwidth_share: bytes read a second, of the machine's bandwidth; chosen: whether `auto` takes this kernel.
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
    calls: int
    timed: str
    bytes_read: int
    bandwidth_share: float
    times_dense: float | None
    error: float
    error_to_original: float | None
    chosen: bool


@dataclass
class Result:
    """Everything that a comparison found. left_out: reasons by kernel; skipped: by case and configuration."""

    machine: Machine
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)

    def measure_bandwidth(self) -> None:
        """Once more; shares are told anew of the largest."""
        before = self.machine.bandwidths or (self.machine.bandwidth,)
        bandwidths = (*before, conditions.bandwidth(self.machine.engine))
        most = max(bandwidths)
        self.machine = replace(self.machine, bandwidth=most, bandwidths=bandwidths)
        self.rows = [replace(row, bandwidth_share=row.bytes_read / row.seconds / most) for row in self.rows]

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
