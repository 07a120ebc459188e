"""How much of a Psumbook product is the building of its tables, the rest being the gathering."""

from __future__ import annotations

from dataclasses import dataclass

from codegemm.engines import cpu
from codegemm.engines.cpu.psumbook_layout import GROUP_ROWS
from codegemm.engines.cuda import psumbook_cut
from codegemm.formats.format import random_weight
from codegemm.measuring import conditions
from codegemm.reproduction.cells import Shape, shape_of
from codegemm.reproduction.lab import Lab, codebook_spec
from codegemm.reproduction.paper import published
from codegemm.reproduction.table import Table

NAME = "table6"
_BUILDING = ("rows of tables", "stores")  # of a cut's terms on a GPU
_MEASURED = (
    f"On one thread: the time of a product with {GROUP_ROWS} rows, which has the same tables, once for every slice of "
    "rows that makes them, of that with all rows."
)
_ESTIMATED = "The share of those terms in the estimate of clocks, whose weights were fitted to measured times."


def table(lab: Lab) -> Table:
    """Shares in percent."""
    paper = published(NAME)
    share = estimated if lab.on_gpu else measured
    found = {(row, column): share(lab, row, shape_of(column)) for row in paper.rows for column in paper.columns}
    ours = [[found[row, column].percent for column in paper.columns] for row in paper.rows]
    return Table.beside(
        NAME,
        "The share of a product that builds the Psumbook",
        "One row of inputs; the paper's are shares of a kernel's cycles with tiles of 32 columns.",
        ours,
        predicted=lab.on_gpu,
        noisy=frozenset(place for place, each in found.items() if each.noisy),
        notes=(_ESTIMATED if lab.on_gpu else _MEASURED,),
    )


@dataclass(frozen=True)
class Share:
    """noisy: whether it is of times that say little."""

    percent: float
    noisy: bool = False


def measured(lab: Lab, config: str, shape: Shape) -> Share:
    """On one thread of the processor."""
    psumbook = cpu.Psumbook()
    weights = [random_weight((rows, shape[1]), config) for rows in (shape[0], GROUP_ROWS)]
    with conditions.threads(1, with_torch=False):
        whole, few = lab.times([(psumbook, weight) for weight in weights])
    share = len(psumbook.cut(codebook_spec(shape, config)).slices) * few.median / whole.median
    return Share(100 * min(1.0, share), whole.noisy or few.noisy)


def estimated(lab: Lab, config: str, shape: Shape) -> Share:
    """By the terms that a GPU's kernel is cut by."""
    spec = codebook_spec(shape, config)
    terms = psumbook_cut.terms(psumbook_cut.cut_for(spec, 1, lab.gpu), spec, lab.gpu)
    clocks = {name: count * psumbook_cut.WEIGHTS[name] for name, count in terms.items()}
    return Share(100 * sum(clocks[name] for name in _BUILDING) / sum(clocks.values()))
