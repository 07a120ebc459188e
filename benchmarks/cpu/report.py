"""What was measured as rich tables and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from rich.table import Table

from benchmarks.cpu.rounds import FEW_ROWS
from benchmarks.cpu.targets import (
    AQLM,
    AUTO_LEAST,
    DENSE,
    FULL_ERROR,
    TARGETS,
    Accuracy,
    Measured,
    Shape,
    Target,
    Timed,
)
from benchmarks.targets import MAIN, Outcome
from codegemm.reporting import by, counted, decimals, format_time, new_table, open_console, write_json

_RIGHT = 1e-3  # AQLM's kernel sums in float32: it errs by more only where it races


@dataclass(frozen=True)
class Machine:
    """What it was measured on. path: the instruction set that the engine takes."""

    device: str
    path: str
    versions: dict[str, str]


def print_tables(measured: Measured, machine: Machine) -> None:
    """The targets first, then what they are made of."""
    console = open_console()
    console.print(*heading(measured, machine), sep="\n")
    console.print(_target_table(measured))
    console.print(_accuracy_table(measured))
    for threads in sorted({row.threads for row in measured.rows}):
        console.print(_product_table(measured, threads))
    console.print(_auto_table(measured))
    for line in aqlm_lines(measured.rows):
        console.print(line)
    for name, reason in measured.left_out.items():
        console.print(f"left out: {name}: {reason}")


def write_report(measured: Measured, machine: Machine, path: str | Path) -> None:
    """The machine, everything measured, unrounded, and the targets."""
    targets = [asdict(outcome) | {"is_met": outcome.is_met} for outcome in measured.outcomes()]
    write_json({"machine": machine, **asdict(measured), "targets": targets}, path)


def heading(measured: Measured, machine: Machine) -> list[str]:
    """Where and how."""
    read: dict[int, list[float]] = {}
    for bandwidth in measured.bandwidths:
        read.setdefault(bandwidth.threads, []).extend(bandwidth.rounds)
    bandwidths = [
        f"{counted(count, 'thread')} {statistics.median(rounds) / 1e9:.1f} GB/s" for count, rounds in read.items()
    ]
    return [
        f"{machine.device}, path {machine.path}; " + ", ".join(f"{k} {v}" for k, v in machine.versions.items()),
        f"read bandwidth: {', '.join(bandwidths)}; weights out of cache, medians of interleaved rounds",
    ]


def aqlm_lines(rows: Sequence[Timed]) -> list[str]:
    """Whether AQLM's kernel is right, by its number of threads."""
    lines = []
    for threads in dict.fromkeys(row.threads for row in rows):
        errors = [row.error for row in rows if row.kernel == AQLM and row.threads == threads]
        if errors:
            said = "right" if max(errors) < _RIGHT else "wrong: its threads race for the outputs"
            lines.append(f"{AQLM}, {counted(threads, 'thread')}: error up to {max(errors):.1e}, {said}")
    return lines


def _target_table(measured: Measured) -> Table:
    columns = [(shape, config) for shape in measured.shapes for config in MAIN]
    headings = [*_headings(columns), ">mean", ">wanted", ">met"]
    table = new_table("Targets, each the geometric mean of its cells", "target", *headings)
    for target in TARGETS:
        # A target of one configuration has a cell a shape, which stands in that shape's last column.
        own = {
            (shape, config if len(target.configs) > 1 else MAIN[-1]): cell
            for (shape, config), cell in measured.cells(target).items()
        }
        cells = (_ratio(own.get(column), target) for column in columns)
        table.add_row(str(target), *cells, *_verdict(measured.outcome(target), target))
    for outcome in measured.worst_automatic():
        table.add_row(outcome.statement, *("" for _ in columns), *_verdict(outcome, None))
    return table


def _accuracy_table(measured: Measured) -> Table:
    columns = dict.fromkeys((accuracy.shape, accuracy.config) for accuracy in measured.accuracies)
    title = "Errors, one row of x at a time, the largest: ||y - y_ref|| / ||y_ref||"
    table = new_table(title, "precision", "x", *_headings(columns), ">allowed", ">met")
    kinds: dict[tuple[str, str], list[Accuracy]] = {}
    for accuracy in measured.accuracies:
        kinds.setdefault((accuracy.precision, accuracy.x), []).append(accuracy)
    chosen = [row for row in measured.rows if row.chosen and row.config in MAIN]
    worst = [max(row.error for row in chosen if (row.shape, row.config) == column) for column in columns]
    for (precision, x), errors, limit in (
        *((kind, [one.error for one in group], group[0].limit) for kind, group in kinds.items()),
        (("full", f"normal, N up to {max(row.batch for row in chosen)}"), worst, FULL_ERROR),
    ):
        met = _yes(max(errors) <= limit)
        table.add_row(precision, x, *(f"{error:.1e}" for error in errors), f"{limit:.1e}", met)
    return table


def _product_table(measured: Measured, threads: int) -> Table:
    title = f"Products, {counted(threads, 'thread')} (* is taken by auto)"
    headings = _headings((shape, name) for shape in measured.shapes for name in ("time", "% of read", f"x {DENSE}"))
    table = new_table(title, "kernel", "weights", "N", *headings, ">error")
    rows = [row for row in measured.rows if row.threads == threads and row.batch in FEW_ROWS]
    for batch in sorted({row.batch for row in rows}):
        for kernel, config in dict.fromkeys((row.kernel, row.config) for row in rows if row.batch == batch):
            products = [measured.find(shape, threads, kernel, config, batch) for shape in measured.shapes]
            cells, found = [], [row for row in products if row is not None]
            for row in products:
                if row is None:
                    cells += [""] * 3
                else:
                    share, ratio = f"{100 * measured.share(row):.0f}", decimals(measured.times(row, DENSE))
                    cells += [format_time(row.median), share, ratio]
            name = kernel + "*" * any(row.chosen for row in found)
            table.add_row(name, config, str(batch), *cells, f"{max(row.error for row in found):.1e}")
        table.add_section()
    return table


def _auto_table(measured: Measured) -> Table:
    title = "What auto takes: times as fast as dense products, " + ", ".join(
        f"{name} at least {least:.2f} up to N = {most}" for name, (least, most) in AUTO_LEAST.items()
    )
    names = [f">{name}" for name in ("time", *AUTO_LEAST, "met")]
    table = new_table(title, "N", "shape", "weights", "kernel", *names)
    for batch, rows in groupby(measured.automatic(), key=lambda row: row.batch):
        for row in rows:
            ratios = {name: measured.times(row, name) for name in AUTO_LEAST}
            kept = [
                ratios[name] >= least
                for name, (least, most) in AUTO_LEAST.items()
                if ratios[name] is not None and batch <= most
            ]
            table.add_row(
                str(batch), by(row.shape), row.config, row.kernel, format_time(row.median),
                *map(decimals, ratios.values()), _yes(all(kept)) if kept else "",
            )  # fmt: skip
        table.add_section()
    return table


def _headings(columns: Iterable[tuple[Shape, str]]) -> list[str]:
    """Of numbers: the shape above what a column has of it."""
    return [f">{by(shape)}\n{name}" for shape, name in columns]


def _verdict(outcome: Outcome, target: Target | None) -> Iterable[str]:
    met = "" if outcome.is_met is None else _yes(outcome.is_met)
    return _ratio(outcome.found, target), _ratio(outcome.least, target), met


def _ratio(value: float | None, target: Target | None) -> str:
    if value is not None and target is not None and target.against is None:
        return f"{100 * value:.0f} %"
    return decimals(value)


def _yes(met: bool) -> str:
    return "yes" if met else "no"
