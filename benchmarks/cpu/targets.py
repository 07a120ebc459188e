"""What the engine is to reach, by instruction set, as statements that measured times meet or miss.

TARGETS is all of it, as data. A set without targets of its own is held to those that name none.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from benchmarks.cpu.measured import (
    AQLM,
    AQLM_CONFIG,
    AUTO,
    AUTO_THREADS,
    DENSE,
    FAST,
    PSUMBOOK,
    TORCH_BF16,
    TORCH_FP32,
    Machine,
    Measured,
    Shape,
    Timed,
)
from benchmarks.targets import MAIN, Outcome
from codegemm.reporting import by, counted

# Of a product's rounds this share may be slower than a dense product's before `auto` counts as slower. A ratio of two
# equal times is below 1 in every second round, and so would be the median of one product in two: the slowest of many
# would always be missed. What remains as slack is what the rounds of this run differ by, and nothing where they agree.
_ROUNDS_SLOWER = 0.75


@dataclass(frozen=True)
class Target:
    """The geometric mean over all shapes and `configs` of how many times as fast as `against` a kernel is, or, against
    nothing, of the share of the read bandwidth that it reaches: at least `least`.

    kernel, against: names, or what stands for what `auto` takes. sets: the instruction sets that it holds for, by their
    names; for all without one.
    """

    kernel: str
    threads: int
    batch: int
    least: float
    against: str | None = None
    configs: tuple[str, ...] = MAIN
    sets: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """What is multiplied, and how."""
        weights = "" if self.configs == MAIN else f", {', '.join(self.configs)}"
        return ("fast" if self.kernel == FAST else "full") + weights

    @property
    def rows(self) -> str:
        """Of x."""
        return str(self.batch)

    def cells(self, measured: Measured) -> dict[tuple[Shape, str], float | None]:
        """What each shape and configuration reaches; None where something was not measured."""
        rows = {
            (shape, config): measured.find(shape, self.threads, self.kernel, config, self.batch)
            for shape in measured.shapes
            for config in self.configs
        }
        return {cell: None if row is None else self._reached(measured, row) for cell, row in rows.items()}

    def outcome(self, measured: Measured) -> Outcome:
        """The geometric mean of all cells, where there is a number in each."""
        cells = list(self.cells(measured).values())
        numbers = [cell for cell in cells if cell is not None]
        mean = statistics.geometric_mean(numbers) if numbers and numbers == cells else None
        terms = f"times {self.against}" if self.against else "share of the read bandwidth"
        return Outcome(f"{self.subject}, N = {self.rows}, {counted(self.threads, 'thread')}: {terms}", mean, self.least)

    def where(self, measured: Measured) -> str:
        """The least and the most of the cells."""
        numbers = [cell for cell in self.cells(measured).values() if cell is not None]
        return f"{self.told(min(numbers))} to {self.told(max(numbers))}" if len(numbers) > 1 else ""

    def told(self, value: float) -> str:
        """A number of its, for people."""
        return f"{value:.2f}" if self.against else f"{100 * value:.0f} %"

    def _reached(self, measured: Measured, row: Timed) -> float | None:
        return measured.times(row, self.against) if self.against else measured.share(row)


@dataclass(frozen=True)
class NeverSlower:
    """No product of `auto` up to `most` rows of x is slower than the dense product `against`, beyond what the rounds
    differ by: of each product's ratios the upper quartile is at least 1.

    small: of the small layers, else of the large ones. sets: as of a `Target`.
    """

    against: str
    most: int
    small: bool = False
    sets: tuple[str, ...] = ()
    threads: int = AUTO_THREADS
    least: float = 1.0

    @property
    def subject(self) -> str:
        """What is multiplied."""
        return "slowest small" if self.small else "slowest"

    @property
    def rows(self) -> str:
        """Of x."""
        return f"up to {self.most}"

    def slowest(self, measured: Measured) -> tuple[float | None, Timed | None]:
        """The least of all products' ratios, and the product."""
        rows = [row for row in measured.small if row.chosen] if self.small else measured.automatic()
        ratios = ((measured.ratios(row, self.against), row) for row in rows if row.batch <= self.most)
        told = [(float(np.quantile(each, _ROUNDS_SLOWER)), row) for each, row in ratios if each]
        return min(told, key=lambda pair: pair[0], default=(None, None))

    def outcome(self, measured: Measured) -> Outcome:
        """Of the slowest product."""
        ratio, _ = self.slowest(measured)
        where = self.where(measured)
        product = f"{self.subject} of auto, N {self.rows}, {counted(self.threads, 'thread')}"
        return Outcome(f"{product}: times {self.against}{f' ({where})' * bool(where)}", ratio, self.least)

    def where(self, measured: Measured) -> str:
        """The slowest product."""
        _, row = self.slowest(measured)
        return "" if row is None else f"{row.kernel}, N = {row.batch}, {by(row.shape)}, {row.config}"

    def told(self, value: float) -> str:
        """A number of its, for people."""
        return f"{value:.2f}"


_AMX = ("amx",)
_PERMUTING = ("vbmi", "bf16", *_AMX)  # bytes, in registers
_OTHERS = ("bf16", "vbmi", "vnni", "avx512", "avx2", "neon")  # torch's bfloat16 has AMX, too
TARGETS: tuple[Target | NeverSlower, ...] = (
    Target(AUTO, 2, 1, 0.60, sets=_PERMUTING),
    Target(FAST, 2, 1, 0.72, sets=_PERMUTING),
    Target(AUTO, 1, 1, 10, DENSE, sets=_PERMUTING),
    Target(FAST, 1, 1, 11, DENSE, sets=_PERMUTING),
    Target(AUTO, 1, 1, 3, AQLM, (AQLM_CONFIG,), _PERMUTING),
    Target(AUTO, 2, 8, 1.0, TORCH_BF16, sets=_AMX),
    Target(AUTO, 2, 16, 1.0, TORCH_BF16, sets=_AMX),
    Target(FAST, 2, 8, 1.5, TORCH_BF16, sets=_AMX),
    Target(FAST, 2, 16, 1.5, TORCH_BF16, sets=_AMX),
    Target(AUTO, 2, 64, 2.0, PSUMBOOK, sets=_AMX),
    Target(AUTO, 2, 4, 1.8, TORCH_BF16, sets=_OTHERS),
    NeverSlower(TORCH_BF16, 16, sets=_OTHERS),
    NeverSlower(DENSE, 512),
    NeverSlower(TORCH_FP32, 512),
    NeverSlower(TORCH_FP32, 16, small=True),
)


def holds(target: Target | NeverSlower, machine: Machine) -> bool:
    """Whether a machine is held to it: by the instruction set that the engine takes. NumPy and torch take the
    processor's best whatever the engine does: for torch's bfloat16 this must be among the sets, too, and with another
    set than that the engine may be slower."""
    if isinstance(target, NeverSlower) and machine.path != machine.best:
        return False
    taken = {machine.path, machine.best} if target.against == TORCH_BF16 else {machine.path}
    return not target.sets or taken <= set(target.sets)


def outcomes(measured: Measured, machine: Machine) -> list[Outcome]:
    """Of every target that the machine is held to, and of what was measured beside the products."""
    return [*(target.outcome(measured) for target in TARGETS if holds(target, machine)), *measured.others]
