"""Work, power and memory of one large product by several methods."""

from __future__ import annotations

from codegemm.comparison.result import Row
from codegemm.formats.format import random_weight
from codegemm.measuring import conditions
from codegemm.registry import kernel_for, registered
from codegemm.reproduction import power
from codegemm.reproduction.cells import ANY, Cell, Times
from codegemm.reproduction.lab import Lab
from codegemm.reproduction.methods import DENSE
from codegemm.reproduction.paper import published
from codegemm.reproduction.table import Table, as_much_as

NAME = "table3"
_POWER = "W"  # the one column that no time is in
SHAPE = (28672, 8192)
_SECONDS = 2.0  # that a product is repeated while its power is read
_UNKNOWN = "The cost model knows of no power."
_UNTOLD = "Nothing tells the power here: nvidia-smi tells a GPU's, RAPL a processor's where it may be read."


def products() -> list[Cell]:
    """One row of inputs, each method."""
    return [Cell(SHAPE, label) for label in published(NAME).rows]


def table(lab: Lab, times: Times) -> Table:
    """TFLOPS of the dense product, W, GFLOPS/W, and the share of the memory's bandwidth in percent."""
    meter = None if lab.predicts else power.meter(lab.settings.engine)
    ours = []
    for cell in products():
        row = times.rows.get(cell)
        flops = None if row is None else 2 * SHAPE[0] * SHAPE[1] / row.seconds
        watts = _watts(lab, cell, row, meter) if meter is not None and isinstance(row, Row) else None
        ours.append((
            flops and flops / 1e12, watts, flops / watts / 1e9 if flops and watts else None,
            None if row is None else 100 * row.bandwidth_share,
        ))  # fmt: skip
    noisy = frozenset(
        (cell.label, column)
        for cell, its in zip(products(), ours)
        for column, number in zip(published(NAME).columns, its)
        if times.is_noisy(cell) and number is not None and column != _POWER
    )
    return Table.beside(
        NAME,
        f"Work, power and memory, {SHAPE[0]} x {SHAPE[1]}, one row of inputs",
        "Work is that of the dense product. The paper's last column is nvidia-smi's utilisation of the memory, ours "
        "the bytes read a second in terms of its bandwidth.",
        ours,
        baseline=DENSE,
        in_terms="times as much as dense, of the same column",
        predicted=bool(lab.predicts),
        noisy=noisy,
        notes=() if meter else (_UNKNOWN if lab.predicts else _UNTOLD,),
        ratio=as_much_as(0),
    )


def _watts(lab: Lab, cell: Cell, row: Row, meter: power.Meter) -> float:
    """While the product that a row is of is repeated."""
    kernel = next(each for each in registered(lab.settings.engine) if each.name == row.kernel)
    weight = random_weight(SHAPE, cell.config or ANY)
    with conditions.path(lab.settings.paths[0]):
        return meter(lab.ready(kernel_for(kernel, weight.spec), weight).call, _SECONDS)
