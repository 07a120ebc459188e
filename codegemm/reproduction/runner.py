"""Runs the paper's experiments, all products of all of them in one comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from codegemm.comparison import runner, selection
from codegemm.comparison.result import Result
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.errors import KernelError
from codegemm.measuring import conditions
from codegemm.quantize.progress import Progress
from codegemm.reproduction import cells as cells_of
from codegemm.reproduction import ALL, NAMES, building, efficiency, paper, tiling, tradeoff
from codegemm.reproduction.cells import Cell, Times, measured, predicted
from codegemm.reproduction.experiments import EXPERIMENTS
from codegemm.reproduction.lab import Lab
from codegemm.reproduction.table import Table


@dataclass(frozen=True)
class Reproduction:
    """What was found. result: of the products that were measured; None where all is predicted, for the GPU `predicts`.
    missing: products that have no time, with the reason."""

    tables: tuple[Table, ...]
    result: Result | None
    predicts: str = ""
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> bool:
        """Whether a kernel failed or is wrong."""
        bad = self.result is not None and bool(self.result.wrong or self.result.failed)
        return bad or any(name in self.missing for name in NAMES)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data; rows as a comparison has them."""
        found = {} if self.result is None else self.result.as_json()
        return {
            "kind": "reproduction",
            **found,
            "predicted": self.predicts or None,
            "paper": paper.citation(),
            "tables": [table.as_json() for table in self.tables],
            "missing": self.missing,
        }


def run(
    names: Sequence[str],
    engine: str = "cpu",
    predicts: str = "",
    threads: int | None = None,
    seconds: float = 0.25,
    rounds: int = 7,
    progress: Progress | None = None,
) -> Reproduction:
    """Make experiments, in the paper's order.

    names: of NAMES; ALL for all of them. engine: that measures. predicts: a GPU's name; nothing is measured then.
    threads: of the CPU kernels; all processors by default. seconds: of a product, in so many rounds.

    Raises ValueError for a name that is none, MemoryError where there is too little memory; both before it measures.
    """
    chosen = _chosen(names)
    lab = _lab("cuda" if predicts else engine, predicts, seconds, rounds)
    settings, cells = lab.settings, products(chosen)
    progress = progress or Progress("", False)
    with conditions.threads(threads, with_torch=False):
        result: Result | None = None
        if predicts:
            times = predicted(cells, KNOWN[predicts])
        else:
            result, times = measured(cells, settings, progress)
        tables = []
        for name in chosen:
            try:
                tables.append(_table(name, lab, times, progress))
            except KernelError as error:  # which must not take the others' tables with it
                times.missing[name] = str(error)
    return Reproduction(tuple(tables), result, predicts, times.missing)


def products(names: Sequence[str]) -> list[Cell]:
    """Those of experiments, each once."""
    return list(dict.fromkeys(cell for name in _chosen(names) for cell in _products(name)))


def _products(name: str) -> Iterable[Cell]:
    """None of experiments that measure in ways of their own."""
    if name in EXPERIMENTS:
        return EXPERIMENTS[name].products
    of_others = {efficiency.NAME: efficiency.products, tradeoff.NAME: tradeoff.products}
    return of_others[name]() if name in of_others else ()


def builds(engine: str) -> Iterator[Callable[[], object]]:
    """What all experiments compile."""
    lab = _lab(engine)
    yield from cells_of.builds(products([ALL]), lab.settings)
    if lab.on_gpu:
        yield from tiling.builds(lab)


def _lab(engine: str, predicts: str = "", seconds: float = 0.25, rounds: int = 7) -> Lab:
    paths = [""] if engine == "cuda" else selection.compared_paths(engine, None)
    return Lab(runner.Settings(engine, (), paths, (), seconds, rounds), predicts)


def _chosen(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in (*NAMES, ALL):
            raise ValueError(f"experiment {name!r}: must be one of {', '.join((*NAMES, ALL))}")
    return [name for name in NAMES if name in names or ALL in names]


def _table(name: str, lab: Lab, times: Times, progress: Progress) -> Table:
    if name in EXPERIMENTS:
        return EXPERIMENTS[name].table(times, bool(lab.predicts))
    if name == efficiency.NAME:
        return efficiency.table(lab, times)
    if name == building.NAME:
        return building.table(lab)
    if name == tiling.NAME:
        return tiling.table(lab)
    with progress.beneath("quantising Gaussian matrices") as bar:
        return tradeoff.table(lab, times, bar)
