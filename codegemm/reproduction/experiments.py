"""The paper's experiments: which products each is of, and the table that their times make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from codegemm.reproduction.cells import Cell, Times, of_block, shape_of
from codegemm.reproduction.methods import DENSE
from codegemm.reproduction.paper import published
from codegemm.reproduction.table import Table, as_fast_as

MICRO = 1e6


@dataclass(frozen=True)
class Experiment:
    """One that is of products' times alone.

    cells: by row and column of the paper's table, the products whose times are summed, and how many there are of each.
    """

    name: str
    title: str
    caption: str
    cells: Callable[[str, str], Mapping[Cell, int]]

    @property
    def products(self) -> Iterable[Cell]:
        """All that it takes."""
        paper = published(self.name)
        return [cell for row in paper.rows for column in paper.columns for cell in self.cells(row, column)]

    def table(self, times: Times, predicted: bool) -> Table:
        """The paper's numbers and these, in microseconds."""
        paper = published(self.name)
        cells = {(row, column): self.cells(row, column) for row in paper.rows for column in paper.columns}
        ours = [[_micro(times.seconds(cells[row, column])) for column in paper.columns] for row in paper.rows]
        noisy = frozenset(place for place, its in cells.items() if any(map(times.is_noisy, its)))
        return Table.beside(
            self.name,
            self.title,
            self.caption,
            ours,
            baseline=DENSE,
            in_terms="times as fast as dense, of the same row",
            predicted=predicted,
            noisy=noisy,
            ratio=as_fast_as(0),
        )


def _micro(seconds: float | None) -> float | None:
    """Microseconds."""
    return None if seconds is None else MICRO * seconds


EXPERIMENTS = {
    each.name: each
    for each in (
        Experiment(
            "table2",
            "A decoder block, one row of inputs",
            "The times of all linear layers of a block, one after the other, none fused.",
            of_block,
        ),
        Experiment(
            "table8",
            "Configurations, 8192 x 8192, one row of inputs",
            "More codebooks (m) and shorter vectors (v) take more bits and more time.",
            lambda row, column: {Cell(shape_of(row), column): 1},
        ),
        Experiment(
            "table9",
            "A block of Llama-3 8B by rows of inputs",
            "The times of all its linear layers, for 1 to 16 rows of inputs.",
            lambda row, column: of_block("Llama-3 8B", column, int(row.removeprefix("batch "))),
        ),
        Experiment(
            "table10",
            "Matrices, one row of inputs",
            "The paper's times have a floor of about 19 us in them, for which nothing was taken off.",
            lambda row, column: {Cell(shape_of(row), column): 1},
        ),
    )
}
