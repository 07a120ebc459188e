"""What the CUDA kernels are to reach, as statements that times, measured or predicted, meet or miss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from codegemm.engines.cuda import model
from codegemm.formats.names import spec_of

MAIN = ("m1v4g128", "m2v8g128")
AQLM, QUIP, DENSE = ("aqlm", "m2v8g-1"), ("quip", "e8p"), ("dense", "")
MOST_ROWS = 64  # of x, up to which quantised products are never to be slower than dense ones


@dataclass(frozen=True)
class Timed:
    """A kernel's product. config: empty for a dense one. bandwidth_share: bytes read a second, of those a copy moves;
    chosen: whether `auto` takes this kernel."""

    kernel: str
    config: str
    shape: tuple[int, int]
    batch: int
    seconds: float
    bandwidth_share: float
    chosen: bool


@dataclass(frozen=True)
class Target:
    """The chosen kernel's product is at least `least` times as fast as the kernel and weights `against`; or reads at
    least that share of what a copy moves."""

    shape: tuple[int, int]
    config: str
    batch: int
    least: float
    against: tuple[str, str] | None = None

    def __str__(self) -> str:
        product = f"{self.shape[0]} x {self.shape[1]}, {self.config}, N = {self.batch}"
        if self.against is None:
            return f"{product}: at least {100 * self.least:.0f} % of the copy bandwidth"
        return f"{product}: at least {self.least:g} times {' '.join(filter(None, self.against))}"


@dataclass(frozen=True)
class Outcome:
    """A statement, what was found in its terms (None: nothing to tell it by) and how much is wanted."""

    statement: str
    found: float | None
    least: float

    @property
    def is_met(self) -> bool | None:
        """None where nothing was found."""
        return None if self.found is None else self.found >= self.least


TARGETS = [
    *(
        Target(shape, config, 1, least, against)
        for shape in ((28672, 8192), (8192, 28672))
        for config in MAIN
        for least, against in ((0.8, None), (3, AQLM), (1.5, QUIP), (5, DENSE))
    ),
    *(
        Target((14336, 4096), config, 1, least, against)
        for config in MAIN
        for least, against in ((0.6, None), (3.5, DENSE))
    ),
    *(Target((14336, 4096), config, n, least, DENSE) for config, least in zip(MAIN, (4, 2.5)) for n in (8, 16)),
]


def outcomes(rows: Sequence[Timed], bandwidth: float) -> list[Outcome]:
    """Of every target, and of what `auto` owes: never slower than dense, or than dense behind a dequantisation.

    bandwidth: bytes a second that a copy moves, read and written.
    """
    chosen = {(row.config, row.shape, row.batch): row for row in rows if row.chosen}
    times = {((row.kernel, row.config), row.shape, row.batch): row.seconds for row in rows}
    few, many = [], []
    for row in chosen.values():
        dense = times.get((DENSE, row.shape, row.batch))
        if dense is None:
            continue
        product = f"{row.shape[0]} x {row.shape[1]}, {row.config}, N = {row.batch}"
        if row.batch <= MOST_ROWS:
            few.append((dense / row.seconds, product))
        else:
            many.append(((dense + dequantisation(row.config, row.shape, bandwidth)) / row.seconds, product))
    return [
        *(Outcome(str(target), _reached(target, chosen, times), target.least) for target in TARGETS),
        _worst(few, f"auto up to N = {MOST_ROWS}: never slower than dense"),
        _worst(many, "auto above: never slower than a dequantisation and dense"),
    ]


def dequantisation(config: str, shape: tuple[int, int], bandwidth: float) -> float:
    """Seconds of a pass that reads a weight and writes it in float16 as fast as a copy."""
    return model.LAUNCH + (spec_of(shape, config).packed_bits / 8 + 2 * shape[0] * shape[1]) / bandwidth


def _reached(
    target: Target,
    chosen: Mapping[tuple[str, tuple[int, int], int], Timed],
    times: Mapping[tuple[tuple[str, str], tuple[int, int], int], float],
) -> float | None:
    row = chosen.get((target.config, target.shape, target.batch))
    if row is None:
        return None
    if target.against is None:
        return row.bandwidth_share
    other = times.get((target.against, target.shape, target.batch))
    return None if other is None else other / row.seconds


def _worst(ratios: Iterable[tuple[float, str]], statement: str) -> Outcome:
    """How many times faster it is at least, and where."""
    ratio, product = min(ratios, default=(None, ""))
    return Outcome(f"{statement} ({product})" if product else statement, ratio, 1)
