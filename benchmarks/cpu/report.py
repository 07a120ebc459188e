"""What was measured as rich tables and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.cpu.measuring import FEW_ROWS, Report
from benchmarks.cpu.targets import (
    AQLM,
    AUTO_LEAST,
    DENSE,
    FULL_ERROR,
    TARGETS,
    TORCH_BF16,
    TORCH_FP32,
    Accuracy,
    Measured,
    Shape,
    Target,
    Timed,
)
from codegemm.comparison.report import format_time, open_console
from codegemm.comparison.targets import MAIN, Outcome
from codegemm.files import replace_file

_RIGHT = 1e-3  # AQLM's kernel sums in float32: it errs by more only where it races


@dataclass(frozen=True)
class Machine:
    """What it was measured on. path: the instruction set that the engine takes."""

    device: str
    path: str
    versions: dict[str, str]


def print_tables(report: Report, machine: Machine) -> None:
    """The targets first, then what they are made of."""
    console = open_console()
    measured = report.measured
    for line in heading(report, machine):
        console.print(line, highlight=False, markup=False)
    for table in (
        _target_table(measured),
        _accuracy_table(report),
        *(_product_table(measured, threads) for threads in sorted({row.threads for row in report.rows})),
        _auto_table(measured),
    ):
        console.print(table)
    for line in aqlm_lines(report.rows):
        console.print(line, highlight=False, markup=False)
    for name, reason in report.left_out.items():
        console.print(f"left out: {name}: {reason}", highlight=False, markup=False)


def write_json(report: Report, machine: Machine, path: str | Path) -> None:
    """The machine, everything measured, unrounded, and the targets."""
    measured = report.measured
    data = {
        "machine": asdict(machine),
        **asdict(report),
        "targets": [asdict(outcome) | {"is_met": outcome.is_met} for outcome in outcomes(measured)],
    }
    replace_file(path, [json.dumps(data, indent=1).encode() + b"\n"])


def outcomes(measured: Measured) -> list[Outcome]:
    """Of every target of speed."""
    return [*map(measured.outcome, TARGETS), *measured.worst_automatic()]


def wrong(report: Report) -> list[str]:
    """Products that err by more than is promised."""
    return [
        *(f"{_by(row.shape)} {row.config} {row.kernel} N={row.batch}: error {row.error:.1e}" for row in report.rows
          if row.chosen and not row.error <= FULL_ERROR),
        *(f"{_by(accuracy.shape)} {accuracy.config} {accuracy.precision}, x {accuracy.x}: error {accuracy.error:.1e}"
          for accuracy in report.accuracies if accuracy.is_met is False),
    ]  # fmt: skip


def heading(report: Report, machine: Machine) -> list[str]:
    """Where and how."""
    read: dict[int, list[float]] = {}
    for bandwidth in report.bandwidths:
        read.setdefault(bandwidth.threads, []).extend(bandwidth.rounds)
    bandwidths = [f"{_threads(count)} {statistics.median(rounds) / 1e9:.1f} GB/s" for count, rounds in read.items()]
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
            lines.append(f"{AQLM}, {_threads(threads)}: error up to {max(errors):.1e}, {said}")
    return lines


def _target_table(measured: Measured) -> Table:
    table = _table("Targets, each the geometric mean of its cells", "target")
    columns = [(shape, config) for shape in measured.shapes for config in MAIN]
    for shape, config in columns:
        table.add_column(f"{_by(shape)}\n{config}", justify="right")
    for name in ("mean", "wanted", "met"):
        table.add_column(name, justify="right")
    for target in TARGETS:
        outcome = measured.outcome(target)
        cells = measured.cells(target)
        # A target of one configuration has a cell a shape, which stands in that shape's last column.
        own = {
            (shape, config if len(target.configs) > 1 else MAIN[-1]): cell for (shape, config), cell in cells.items()
        }
        table.add_row(
            outcome.statement,
            *(_ratio(own.get(column), target) for column in columns),
            *_verdict(outcome, target),
        )
    for outcome in measured.worst_automatic():
        table.add_row(outcome.statement, *("" for _ in columns), *_verdict(outcome, None))
    return table


def _accuracy_table(report: Report) -> Table:
    table = _table("Errors, one row of x at a time, the largest: ||y - y_ref|| / ||y_ref||", "precision", "x")
    columns = dict.fromkeys((accuracy.shape, accuracy.config) for accuracy in report.accuracies)
    for shape, config in columns:
        table.add_column(f"{_by(shape)}\n{config}", justify="right")
    for name in ("allowed", "met"):
        table.add_column(name, justify="right")
    kinds: dict[tuple[str, str], list[Accuracy]] = {}
    for accuracy in report.accuracies:
        kinds.setdefault((accuracy.precision, accuracy.x), []).append(accuracy)
    for (precision, x), group in kinds.items():
        limit = group[0].limit
        met = "" if limit is None else _yes(all(accuracy.is_met for accuracy in group))
        table.add_row(precision, x, *(f"{f.error:.1e}" for f in group), "" if limit is None else f"{limit:.1e}", met)
    chosen = [row for row in report.rows if row.chosen and row.config in MAIN]
    worst = {(row.shape, row.config): 0.0 for row in chosen}
    for row in chosen:
        worst[row.shape, row.config] = max(worst[row.shape, row.config], row.error)
    errors = [worst[column] for column in columns]
    most = max(row.batch for row in chosen)
    met = _yes(max(errors) <= FULL_ERROR)
    table.add_row("full", f"normal, N up to {most}", *(f"{e:.1e}" for e in errors), f"{FULL_ERROR:.1e}", met)
    return table


def _product_table(measured: Measured, threads: int) -> Table:
    table = _table(f"Products, {_threads(threads)} (* is taken by auto)", "kernel", "weights", "N")
    for shape in measured.shapes:
        for name in ("time", "% of read", f"x {DENSE}"):
            table.add_column(f"{_by(shape)}\n{name}", justify="right")
    table.add_column("error", justify="right")
    rows = [row for row in measured.rows if row.threads == threads and row.batch in FEW_ROWS]
    for batch in sorted({row.batch for row in rows}):
        for kernel, config in dict.fromkeys((row.kernel, row.config) for row in rows if row.batch == batch):
            cells = [measured.find(shape, threads, kernel, config, batch) for shape in measured.shapes]
            products = [row for row in cells if row is not None]
            name = kernel + "*" * any(row.chosen for row in products)
            values = [value for row in cells for value in _product_cells(measured, row)]
            table.add_row(name, config, str(batch), *values, f"{max(row.error for row in products):.1e}")
        table.add_section()
    return table


def _product_cells(measured: Measured, row: Timed | None) -> list[str]:
    if row is None:
        return [""] * 3
    return [
        format_time(row.median),
        f"{100 * measured.share(row):.0f}",
        _number(measured.times(row, DENSE)),
    ]


def _auto_table(measured: Measured) -> Table:
    title = "What auto takes: times as fast as dense products, " + ", ".join(
        f"{name} at least {least:.2f} up to N = {most}" for name, (least, most) in AUTO_LEAST.items()
    )
    table = _table(title, "N", "shape", "weights", "kernel")
    for name in ("time", DENSE, TORCH_FP32, TORCH_BF16, "met"):
        table.add_column(name, justify="right")
    last = None
    for row in measured.automatic():
        if last not in (None, row.batch):
            table.add_section()
        last = row.batch
        ratios = {name: measured.times(row, name) for name in AUTO_LEAST}
        kept = [
            ratio >= AUTO_LEAST[name][0]
            for name, ratio in ratios.items()
            if ratio is not None and row.batch <= AUTO_LEAST[name][1]
        ]
        table.add_row(
            str(row.batch), _by(row.shape), row.config, row.kernel, format_time(row.median),
            *map(_number, ratios.values()), _yes(all(kept)) if kept else "",
        )  # fmt: skip
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def _verdict(outcome: Outcome, target: Target | None) -> Iterable[str]:
    met = "" if outcome.is_met is None else _yes(outcome.is_met)
    return _ratio(outcome.found, target), _ratio(outcome.least, target), met


def _ratio(value: float | None, target: Target | None) -> str:
    if value is not None and target is not None and target.against is None:
        return f"{100 * value:.0f} %"
    return _number(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _by(shape: Shape) -> str:
    return f"{shape[0]} x {shape[1]}"
