"""The paper's numbers and ours as a picture: bars side by side, and what configurations trade as points."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from codegemm.reporting import blank_figure, write_picture
from codegemm.reproduction import paper, report
from codegemm.reproduction.runner import Reproduction
from codegemm.reproduction.table import Number, Table

_WIDTH, _LINE, _HEAD, _POINTS = 7.5, 0.3, 0.95, 4.6  # inches: a panel, a cell's bars, a panel's title and axis, points
_NARROW = 4.2  # inches: a picture of one panel
_FONT = 7
_PAPER, _OURS = "#b8b8b8", "#2b6cb0"
_GROUPS = "osD^"  # marks of group sizes


def write_plot(found: Reproduction, path: str | Path) -> None:
    """As PNG or SVG, by its name; predicted bars are hatched."""
    columns = _columns(found.tables)
    height = max(sum(map(_height, column)) for column in columns) + 0.9
    figure = blank_figure((_WIDTH * len(columns), height))
    for part, column in zip(figure.subfigures(1, len(columns), squeeze=False)[0], columns):
        panels = part.subplots(len(column), 1, squeeze=False, height_ratios=list(map(_height, column)))[:, 0]
        for panel, table in zip(panels, column):
            _draw(panel, table)
            panel.set_title(textwrap.fill(report.title(table), 70), fontsize=8)
    text = f"Grey: the paper ({paper.machine()}). Blue: {report.here(found)}."
    figure.suptitle(textwrap.fill(text, int(13 * _WIDTH * len(columns))), fontsize=9)
    write_picture(figure, path)


def table_figure(table: Table) -> Any:
    """One table's, as narrow as a page on a phone, without a title."""
    figure = blank_figure((_NARROW, _height(table)))
    _draw(figure.subplots(), table)
    return figure


def _columns(tables: Sequence[Table]) -> list[list[Table]]:
    """Two of about the same height, or one of a single table."""
    columns: list[list[Table]] = [[] for _ in tables[:2]]
    for table in sorted(tables, key=_height, reverse=True):
        min(columns, key=lambda column: sum(map(_height, column))).append(table)
    return [sorted(column, key=tables.index) for column in columns]


def _height(table: Table) -> float:
    """Of its panel, in inches."""
    return _POINTS if table.paper is None else _HEAD + _LINE * len(list(_bars(table)))


def _draw(panel: Any, table: Table) -> None:
    (_draw_points if table.paper is None else _draw_bars)(panel, table)


def _draw_bars(panel: Any, table: Table) -> None:
    """Ratios where there are some, else the numbers themselves."""
    hatch = {"hatch": "////", "fill": False, "edgecolor": _OURS} if table.predicted else {"color": _OURS}
    labels, place = [], 0
    for row, column, *numbers in _bars(table):
        theirs, ours = numbers[1::2] if table.ratio is not None else numbers[::2]
        _bar(panel, place - 0.2, theirs, {"color": _PAPER})
        _bar(panel, place + 0.2, ours, hatch)
        labels.append(column if len(table.rows) == 1 else row if len(table.columns) == 1 else f"{row}: {column}")
        place += 1
    panel.set_yticks(range(place), labels, fontsize=_FONT)
    panel.set_ylim(place - 0.4, -0.6)
    panel.margins(x=0.12)
    if table.ratio is not None:
        panel.axvline(1, color="black", linewidth=0.8, linestyle=":", zorder=0)
    _frame(panel, table.in_terms or table.unit)


def _bars(table: Table) -> Iterator[tuple[Any, ...]]:
    """The table's cells without those of the baseline, which are 1."""
    for cell in table.cells():
        if table.ratio is None or table.baseline not in cell[:2]:
            yield cell


def _bar(panel: Any, y: float, value: Number, look: dict[str, Any]) -> None:
    if value is None:
        return
    panel.barh(y, value, 0.36, **look)
    panel.annotate(
        f"{value:.2f}", (value, y), (2, 0), textcoords="offset points", fontsize=_FONT - 1.5, verticalalignment="center"
    )


def _draw_points(panel: Any, table: Table) -> None:
    """Bits across, time upwards, the error as a colour, a mark for each group size."""
    points: list[tuple[Any, ...]] = [
        (label, *cells) for label, cells in zip(table.rows, table.ours) if None not in cells
    ]
    errors = [error for *_, error in points]
    by_group: dict[str, list[Any]] = {}
    for point in points:
        by_group.setdefault(point[0].partition("g")[2], []).append(point)
    shown = None
    for mark, (group, its) in zip(_GROUPS, by_group.items()):
        shown = panel.scatter(
            [bits for _, bits, _, _ in its], [time / 1e3 for _, _, time, _ in its], 34, [error for *_, error in its],
            marker=mark, cmap="viridis_r", vmin=min(errors), vmax=max(errors), label=f"g={group}", edgecolors="black",
            linewidths=0.4,
        )  # fmt: skip
    for label, bits, time, _ in by_group.get("-1", []):
        panel.annotate(
            label.partition("g")[0], (bits, time / 1e3), (-6, -2), textcoords="offset points", fontsize=_FONT,
            horizontalalignment="right",
        )  # fmt: skip
    if shown is not None:
        bar = panel.figure.colorbar(shown, ax=panel, pad=0.01)
        bar.ax.tick_params(labelsize=_FONT)
        bar.set_label("relative MSE of a Gaussian matrix", fontsize=_FONT)
        panel.legend(fontsize=_FONT, frameon=False, loc="upper left")
    panel.set_ylim(bottom=0)
    panel.set_ylabel("ms", fontsize=_FONT)
    _frame(panel, "bits per weight")


def _frame(panel: Any, below: str) -> None:
    panel.set_xlabel(below, fontsize=_FONT)
    panel.tick_params(axis="both", labelsize=_FONT)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right"]].set_visible(False)
