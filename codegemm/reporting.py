"""What reports have in common: the console and its tables, times and shapes for people, files of JSON and pictures."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codegemm.files import replace_file

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

DPI = 130


def open_console() -> Console:
    """Prints text as it is: names may look like markup. Piped output has no width of its own and gets what tables
    need."""
    from rich.console import Console

    width = None if Console().is_terminal else 140
    return Console(width=width, markup=False, emoji=False, highlight=False)


def new_table(title: str, *headings: str) -> Table:
    """Columns by their headings; those of numbers, aligned right, have a `>` in front. Long text is folded, not cut."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in headings:
        table.add_column(
            heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left", overflow="fold"
        )
    return table


def by(shape: Sequence[int]) -> str:
    """A matrix's shape."""
    return f"{shape[0]} x {shape[1]}"


def counted(number: int, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def decimals(value: float | None) -> str:
    """A ratio with two, or nothing."""
    return "" if value is None else f"{value:.2f}"


def format_time(seconds: float) -> str:
    """In microseconds, from a thousand of them on in milliseconds."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms"


def write_json(data: Any, path: str | Path) -> None:
    """Plain data and dataclasses; an existing file is replaced only when all is written."""
    replace_file(path, [json.dumps(data, indent=1, default=dataclasses.asdict).encode() + b"\n"])


def new_figure(lines: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure that no window shows, and its panels [lines, columns]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(size, DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(lines, columns, squeeze=False)


def write_picture(figure: Any, path: str | Path) -> None:
    """A figure as PNG; an existing file is replaced only when all is written."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    replace_file(path, [buffer.getvalue()])
