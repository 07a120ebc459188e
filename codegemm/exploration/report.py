"""An exploration's result as rich tables and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codegemm.comparison.report import format_time, open_console
from codegemm.exploration.measure import Measured, Settings
from codegemm.exploration.runner import Exploration, Explored
from codegemm.files import replace_file
from codegemm.quantize import ROTATED


def print_tables(result: Exploration) -> None:
    """One table per matrix, and what was left out."""
    console = open_console()
    console.print(conditions(result), highlight=False, markup=False)
    for explored in result.matrices:
        if explored.measured:
            console.print(_table(explored, result.settings))
        for candidate, reason in explored.skipped.items():
            console.print(f"left out: {explored.name}: {candidate}: {reason}", highlight=False, markup=False)
    console.print("* no other has as few bits, as little error and as little time, and less of one", highlight=False)
    if result.unfinished:
        console.print(f"stopped: {result.unfinished} more were not measured", highlight=False)


def write_json(result: Exploration, path: str | Path) -> None:
    """Every figure, unrounded: of a matrix its candidates from the smallest on, and which are on the front."""
    data = {
        "device": result.device,
        "threads": result.threads,
        **asdict(result.settings),
        "unfinished": result.unfinished,
        "matrices": [
            {
                "name": explored.name,
                "shape": explored.shape,
                "calibrated": explored.calibrated,
                "candidates": [{**asdict(one), "front": front} for one, front in explored.by_size()],
                "skipped": explored.skipped,
            }
            for explored in result.matrices
        ],
    }
    replace_file(path, [json.dumps(data, indent=1).encode() + b"\n"])


def conditions(result: Exploration) -> str:
    """What the times were measured on."""
    settings, threads = result.settings, result.threads
    return (
        f"{result.device}, {settings.engine} engine, {threads} thread{'s' * (threads != 1)}; {settings.rows} "
        f"row{'s' * (settings.rows != 1)} of x; times are medians, weights out of cache"
    )


def dense_product(explored: Explored, settings: Settings) -> str:
    """What the candidates' times are told in terms of: the median over all turns."""
    return f"dense {settings.dtype}: {format_time(explored.dense_seconds)}"


def label(measured: Measured) -> str:
    """The candidate's name where there is little room."""
    return measured.config + " R" * measured.rotate


def error_name(explored: Explored) -> str:
    """What `error` is relative to."""
    return "output error" if explored.calibrated else "error"


def title(explored: Explored) -> str:
    """The matrix and its shape."""
    return f"{explored.name} ({explored.shape[0]} x {explored.shape[1]})"


def _table(explored: Explored, settings: Settings) -> Any:
    from rich.markup import escape
    from rich.table import Table

    heading = f"{title(explored)}, {dense_product(explored, settings)}"
    table = Table(title=escape(heading), title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("weights")
    for name in ("bits/weight", "kB", error_name(explored)):
        table.add_column(name, justify="right")
    table.add_column("kernel")
    for name in ("time", "x dense"):
        table.add_column(name, justify="right")
    for one, front in explored.by_size():
        table.add_row(
            "*" if front else "",
            one.config + ROTATED * one.rotate,
            f"{one.bits_per_weight:.3f}",
            f"{one.nbytes / 1e3:.1f}",
            f"{one.error:.4f}" if one.error >= 1e-3 else f"{one.error:.1e}",
            one.kernel,
            format_time(one.seconds),
            f"{explored.dense_seconds / one.seconds:.2f}",
        )
    return table
