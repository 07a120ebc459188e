"""What reports have in common: the console and its tables, times and shapes for people, files of JSON and pictures."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codegemm.files import replace_file

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

DPI = 130
_PIPED_WIDTH = 10_000


def open_console() -> Console:
    """Prints text as it is: names may look like markup. Piped output has no width, and nothing in it is cut."""
    from rich.console import Console

    width = None if Console().is_terminal else _PIPED_WIDTH
    return Console(width=width, markup=False, emoji=False, highlight=False)


def new_table(title: str, *headings: str) -> Table:
    """Columns by their headings; those of numbers, aligned right, have a `>` in front. Long text is folded, not cut."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, collapse_padding=True)
    for heading in headings:
        table.add_column(
            heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left", overflow="fold"
        )
    return table


def print_table(
    console: Console,
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str] | None],
    optional: Sequence[str | None] = (),
) -> None:
    """A table as `new_table` makes it; None among its rows ends a section.

    optional: headings of columns that a narrow terminal does without, the first of them first, as far as it must; None
    among them: from there on the widest column is folded if that helps.
    """
    from rich.measure import Measurement

    unbounded = console.options.update(width=_PIPED_WIDTH)
    kept, hidden = list(range(len(headings))), []
    for step in [step for step in optional if step is None or step in headings] + [None]:
        table = new_table("", *(headings[place] for place in kept))
        for row in rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(*(row[place] for place in kept))
        missing = Measurement.get(console, unbounded, table).maximum - console.width
        widths = [max(len(line[place]) for line in (headings, *filter(None, rows))) for place in kept]
        if missing <= 0:
            break
        if step is not None:
            hidden.append(step.removeprefix(">"))
            kept = [place for place in kept if headings[place] != step]
        elif missing <= max(widths) // 2:  # the widest can be folded, so that no other is
            for column, width in zip(table.columns, widths):
                column.no_wrap = width < max(widths)
            break
    console.print(title, style="bold")  # apart: a table folds its own to its width
    console.print(table)
    if hidden:
        console.print(f"not shown, for lack of room: {', '.join(hidden)}\n")


def by(shape: Sequence[int]) -> str:
    """A matrix's shape."""
    return f"{shape[0]} x {shape[1]}"


def counted(number: int, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def decimals(value: float | None) -> str:
    """A ratio with two, or nothing."""
    return "" if value is None else f"{value:.2f}"


def format_time(seconds: float, like: float | None = None) -> str:
    """In microseconds, from a thousand of them on in milliseconds; in the unit of another time where one is named."""
    if (seconds if like is None else like) < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms"


def write_json(data: Any, path: str | Path) -> None:
    """Plain data and dataclasses, what is no number as null; an existing file is replaced only when all is written."""
    replace_file(path, [json.dumps(_plain(data), indent=1, allow_nan=False).encode() + b"\n"])


def _plain(data: Any) -> Any:
    """What JSON knows."""
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        data = dataclasses.asdict(data)
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def blank_figure(size: tuple[float, float]) -> Any:
    """A figure of so many inches that no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(size, DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_figure(lines: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure and its panels [lines, columns]."""
    figure = blank_figure(size)
    return figure, figure.subplots(lines, columns, squeeze=False)


def write_picture(figure: Any, path: str | Path) -> None:
    """A figure as PNG, or as SVG where the name ends so; an existing file is replaced only when all is written."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg" if Path(path).suffix.lower() == ".svg" else "png")
    replace_file(path, [buffer.getvalue()])
