"""What configurations trade: bits, time and error, for every one of the paper's and every group size."""

from __future__ import annotations

import numpy as np

from codegemm.exploration.measure import energy
from codegemm.formats.format import spec_of
from codegemm.quantize.progress import Progress
from codegemm.quantize.stored import quantized
from codegemm.reproduction.cells import Cell, Times
from codegemm.reproduction.experiments import MICRO
from codegemm.reproduction.lab import Lab
from codegemm.reproduction.table import Table

NAME = "figure4"
SHAPE = (8192, 8192)
GAUSSIAN = (1024, 1024)
CONFIGS = tuple(
    f"m{m}v{v}g{g}"
    for m, v in ((1, 8), (1, 4), (2, 8), (3, 8), (2, 4), (4, 8), (4, 16))
    for g in (8, 32, 128, -1)
    if g == -1 or g % v == 0
)
_TIME = "time"
COLUMNS = ("bits/weight", _TIME, "relative MSE")


def products() -> list[Cell]:
    """One row of inputs, each configuration."""
    return [Cell(SHAPE, config) for config in CONFIGS]


def table(lab: Lab, times: Times, progress: Progress) -> Table:
    """By configuration."""
    progress.total(len(CONFIGS))
    ours = []
    for cell in products():
        row = times.rows.get(cell)
        bits = spec_of(SHAPE, cell.label).bits_per_weight
        ours.append((bits, None if row is None else MICRO * row.seconds, error(cell.label)))
        progress.advance()
    return Table(
        name=NAME,
        title="What configurations trade, 8192 x 8192, one row of inputs",
        caption=f"The error is |W - W'|^2 / |W|^2 of a Gaussian matrix of {GAUSSIAN[0]} x {GAUSSIAN[1]}; the paper "
        "draws its own trade-offs as a picture, of a model's accuracy.",
        unit="",
        rows=CONFIGS,
        columns=COLUMNS,
        paper=None,
        ours=tuple(ours),
        predicted=bool(lab.predicts),
        noisy=frozenset((cell.label, _TIME) for cell in products() if times.is_noisy(cell)),
        notes=("Bits and errors are not predicted.",) if lab.predicts else (),
    )


def error(config: str) -> float:
    """Of a Gaussian matrix quantised so, which is kept in the user's cache."""
    matrix = np.random.default_rng(0).standard_normal(GAUSSIAN, np.float32)
    weight = quantized(matrix, config, seed=0)
    return energy(matrix - weight.dequantize(np.float32)) / energy(matrix)
