"""An exploration's result as rich tables and JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from codegemm.exploration.measure import Settings
from codegemm.exploration.runner import Exploration, Explored
from codegemm.reporting import by, counted, decimals, format_time, new_table, open_console, write_json

if TYPE_CHECKING:
    from rich.table import Table


def print_tables(result: Exploration) -> None:
    """One table per matrix, and what was left out."""
    console = open_console()
    console.print(conditions(result))
    for explored in result.matrices:
        if explored.measured:
            console.print(_table(explored, result.settings))
        for config, reason in explored.skipped.items():
            console.print(f"left out: {explored.name}: {config}: {reason}")
    console.print("* no other has as few bits, as little error and as little time, and less of one")
    if result.unfinished:
        console.print(f"stopped: {result.unfinished} more were not measured")


def write_result(result: Exploration, path: str | Path) -> None:
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
                "candidates": [asdict(one) | {"front": front} for one, front in explored.by_size()],
                "skipped": explored.skipped,
            }
            for explored in result.matrices
        ],
    }
    write_json(data, path)


def conditions(result: Exploration) -> str:
    """What the times were measured on."""
    settings = result.settings
    return (
        f"{result.device}, {settings.engine} engine, {counted(result.threads, 'thread')}; "
        f"{counted(settings.rows, 'row')} of x; times are medians, weights out of cache"
    )


def dense_product(explored: Explored, settings: Settings) -> str:
    """What the candidates' times are told in terms of: the median over all turns."""
    return f"dense {settings.dtype}: {format_time(explored.dense_seconds)}"


def error_name(explored: Explored) -> str:
    """What `error` is relative to."""
    return "output MSE" if explored.calibrated else "MSE"


def title(explored: Explored) -> str:
    """The matrix and its shape."""
    return f"{explored.name} ({by(explored.shape)})"


def _table(explored: Explored, settings: Settings) -> Table:
    heading = f"{title(explored)}, {dense_product(explored, settings)}"
    error = f">{error_name(explored)}"
    table = new_table(heading, "", "weights", ">bits/weight", ">kB", error, "kernel", ">time", ">x dense")
    for one, front in explored.by_size():
        table.add_row(
            "*" if front else "",
            one.config,
            f"{one.bits_per_weight:.3f}",
            f"{one.nbytes / 1e3:.1f}",
            f"{one.error:.4f}" if one.error >= 1e-3 else f"{one.error:.1e}",
            one.kernel,
            format_time(one.seconds),
            decimals(explored.dense_seconds / one.seconds),
        )
    return table
