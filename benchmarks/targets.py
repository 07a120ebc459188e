"""What the CUDA kernels are to reach, as statements that times, measured or predicted, meet or miss.

`python -m benchmarks.targets [GPU]` holds the cost model's predictions to them; it needs no GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from codegemm.comparison.result import Row
from codegemm.engines.cuda import model
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.formats.format import spec_of
from codegemm.measuring.sources import RANDOM_CONFIGS
from codegemm.prediction import Prediction, copy_bandwidth, predict
from codegemm.reporting import by

MAIN = ("m1v4g128", "m2v8g128")
AQLM, QUIP, QTIP, DENSE = ("aqlm", "m2v8g-1"), ("quip", "e8p"), ("qtip", "qtip"), ("dense", "")
MOST_ROWS = 64  # of x, up to which quantised products are never to be slower than dense ones
Timed: TypeAlias = Row | Prediction


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
        product = f"{by(self.shape)}, {self.config}, N = {self.batch}"
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

    def line(self) -> str:
        """For people."""
        verdict = {None: "no such kernel", True: "met", False: "missed"}[self.is_met]
        return f"{'unknown' if self.found is None else f'{self.found:.2f}':>8}  {verdict:14}  {self.statement}"


TARGETS = [
    *(
        Target(shape, config, 1, least, against)
        for shape in ((28672, 8192), (8192, 28672))
        for config in MAIN
        for least, against in ((0.8, None), (3, AQLM), (1.5, QUIP), (1.3, QTIP), (5, DENSE))
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
    reached, few, many = [], [], []
    for target in TARGETS:
        row = chosen.get((target.config, target.shape, target.batch))
        found = row and row.bandwidth_share
        if row and target.against:
            other = times.get((target.against, target.shape, target.batch))
            found = other and other / row.seconds
        reached.append(Outcome(str(target), found, target.least))
    for row in chosen.values():
        dense = times.get((DENSE, row.shape, row.batch))
        if dense is None:
            continue
        product = f" ({by(row.shape)}, {row.config}, N = {row.batch})"
        if row.batch <= MOST_ROWS:
            few.append((dense / row.seconds, product))
        else:
            many.append(((dense + dequantisation(row.config, row.shape, bandwidth)) / row.seconds, product))
    for ratios, statement in (
        (few, f"auto up to N = {MOST_ROWS}: never slower than dense"),
        (many, "auto above: never slower than a dequantisation and dense"),
    ):
        slowest, product = min(ratios, default=(None, ""))
        reached.append(Outcome(statement + product, slowest, 1))
    return reached


def dequantisation(config: str, shape: tuple[int, int], bandwidth: float) -> float:
    """Seconds of a pass that reads a weight and writes it in float16 as fast as a copy."""
    return model.LAUNCH + (spec_of(shape, config).packed_bits / 8 + 2 * shape[0] * shape[1]) / bandwidth


def predicted(gpu: str) -> list[Outcome]:
    """Of the products that targets are about, and of `auto` around its limit, on one of the known GPUs."""
    shapes = dict.fromkeys(target.shape for target in TARGETS)
    batches = sorted({target.batch for target in TARGETS} | {MOST_ROWS, 2 * MOST_ROWS})
    return outcomes(predict(KNOWN[gpu], shapes, RANDOM_CONFIGS, batches), copy_bandwidth(KNOWN[gpu]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gpu", nargs="?", default="h200", choices=list(KNOWN))
    print(*(outcome.line() for outcome in predicted(parser.parse_args().gpu)), sep="\n")
