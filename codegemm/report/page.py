"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any

from codegemm.report import grids, losing, pictures
from codegemm.report.grids import Grid
from codegemm.report.losing import Loss
from codegemm.report.pictures import Picture
from codegemm.report.reading import Source
from codegemm.reproduction import report
from codegemm.reproduction.table import Table
from codegemm.version import __version__

TEMPLATE = "page.html"


@dataclass(frozen=True)
class Reproduced:
    """An experiment of the paper's."""

    title: str
    grid: Grid
    picture: Picture
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """One run's, or a GPU's predictions. facts: what it was made with, by name."""

    source: Source
    facts: Mapping[str, str]
    grid: Grid | None
    pictures: tuple[Picture, ...]
    tables: tuple[Reproduced, ...]


def render(sources: Sequence[Source]) -> str:
    """The page of them, in this order."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("codegemm.report").joinpath(TEMPLATE).read_text())
    parts = [_part(source, f"p{number}") for number, source in enumerate(sources)]
    places = {place: [part for part in parts if part.source.place == place] for place in _places(sources)}
    lost = _lost(sources)
    return template.render(
        places=places,
        losses=grids.of_losses("Where it loses", lost) if lost else None,
        cells=sum(len(losing.cells(source.products)) for source in sources),
        lost=len(lost),
        predicted=any(source.predicts for source in sources),
        version=__version__,
        date=datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
    )


def facts(machine: Mapping[str, Any]) -> dict[str, str]:
    """What a run tells of its machine, as text; what it doesn't tell is left out."""
    told = {name: machine.get(name) for name in ("engine", "threads", "date", "commit", "version", "compiler")}
    found = {name: str(value) for name, value in told.items() if value}
    bandwidth = machine.get("bandwidth")
    if isinstance(bandwidth, (int, float)):
        read = "copy" if machine.get("engine") == "cuda" else "read"
        found["memory bandwidth"] = f"{bandwidth / 1e9:.1f} GB/s ({read})"
    return found


def _places(sources: Sequence[Source]) -> list[str]:
    return list(dict.fromkeys(source.place for source in sources))


def _part(source: Source, prefix: str) -> Part:
    products = source.products
    return Part(
        source,
        facts(source.machine),
        grids.of_products(f"Products of {source.name}", products) if products else None,
        tuple(pictures.of_products(products, prefix)),
        tuple(_reproduced(table, f"{prefix}-{table.name}") for table in source.tables),
    )


def _reproduced(table: Table, prefix: str) -> Reproduced:
    notes = [table.caption, f"x: {table.in_terms}." if table.ratio is not None else "", *table.notes]
    return Reproduced(
        report.title(table), grids.of_table(table), pictures.of_table(table, prefix), tuple(filter(None, notes))
    )


def _lost(sources: Sequence[Source]) -> list[tuple[str, Loss]]:
    """Of all runs, the largest factor first."""
    found = [(source.place, loss) for source in sources for loss in losing.losses(source.products)]
    return sorted(found, key=lambda each: -each[1].factor)
