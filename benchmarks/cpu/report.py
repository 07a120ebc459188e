"""What was measured as tables and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from rich.console import Console

from benchmarks.cpu.measured import (
    AQLM,
    AUTO_THREADS,
    DENSE,
    FULL_ERROR,
    TORCH_BF16,
    TORCH_FP32,
    Accuracy,
    Machine,
    Measured,
    Shape,
    Timed,
)
from benchmarks.cpu.rounds import FEW_ROWS
from benchmarks.cpu.targets import TARGETS, holds, outcomes
from benchmarks.targets import MAIN
from codegemm.reporting import by, counted, decimals, format_time, open_console, print_table, write_json

_RIGHT = 1e-3  # AQLM's kernel sums in float32: it errs by more only where it races
_AUTO_TERMS = (DENSE, TORCH_FP32, TORCH_BF16)


def print_tables(measured: Measured, machine: Machine) -> None:
    """The targets first, then what they are made of."""
    console = open_console()
    console.print(*heading(measured, machine), "", sep="\n")
    _print_targets(console, measured, machine)
    _print_accuracies(console, measured)
    for shape, threads in dict.fromkeys((row.shape, row.threads) for row in measured.rows):
        _print_products(console, measured, shape, threads)
    _print_automatic(console, measured)
    for line in aqlm_lines(measured.rows):
        console.print(line)
    for name, reason in measured.left_out.items():
        console.print(f"left out: {name}: {reason}")


def write_report(measured: Measured, machine: Machine, path: str | Path) -> None:
    """The machine, everything measured, unrounded, and the targets that it is held to."""
    told = [asdict(outcome) | {"is_met": outcome.is_met} for outcome in outcomes(measured, machine)]
    write_json({"machine": machine, **asdict(measured), "targets": told}, path)


def heading(measured: Measured, machine: Machine) -> list[str]:
    """Where and how."""
    read: dict[int, list[float]] = {}
    for bandwidth in measured.bandwidths:
        read.setdefault(bandwidth.threads, []).extend(bandwidth.rounds)
    bandwidths = [
        f"{counted(count, 'thread')} {statistics.median(rounds) / 1e9:.1f} GB/s" for count, rounds in read.items()
    ]
    best = "" if machine.best == machine.path else f" of a processor with {machine.best}"
    return [
        f"{machine.device}, instruction set {machine.path}{best}",
        ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        f"read bandwidth: {', '.join(bandwidths)}; weights out of cache, medians of interleaved rounds",
        *(f"the machine was busy: {told}" for told in machine.disturbances),
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


def _print_targets(console: Console, measured: Measured, machine: Machine) -> None:
    headings = ("of auto", ">N", ">threads", "in terms of", "holds for", "cells", ">found", ">wanted", ">met")
    rows: list[list[str] | None] = []
    for target in TARGETS:
        outcome = target.outcome(measured)
        met = _verdict(outcome.is_met) if holds(target, machine) else "-"
        found = "" if outcome.found is None else target.told(outcome.found)
        rows.append([
            target.subject, target.rows, str(target.threads), target.against or "read bandwidth",
            ", ".join(target.sets) or "all", target.where(measured), found, target.told(target.least), met,
        ])  # fmt: skip
    title = f"Targets, geometric means of the cells; - where one doesn't hold for {machine.path}"
    print_table(console, title, headings, rows, ("cells", "holds for"))
    for other in measured.others:
        console.print(other.line())


def _print_accuracies(console: Console, measured: Measured) -> None:
    kinds: dict[tuple[str, str], list[Accuracy]] = {}
    for accuracy in measured.accuracies:
        kinds.setdefault((accuracy.precision, accuracy.x), []).append(accuracy)
    chosen = [row for row in measured.rows if row.chosen and row.config in MAIN]
    told = [(*kind, [(one.config, one.error) for one in its], its[0].limit) for kind, its in kinds.items()]
    most = max(row.batch for row in chosen)
    told.append(("full", f"normal, N up to {most}", [(row.config, row.error) for row in chosen], FULL_ERROR))
    rows = []
    for precision, x, errors, limit in told:
        worst = [max(error for config, error in errors if config == each) for each in MAIN]
        met = _verdict(max(worst) <= limit)
        rows.append([precision, x, *(f"{error:.1e}" for error in worst), f"{limit:.1e}", met])
    title = "Errors, one row of x at a time, the largest: ||y - y_ref|| / ||y_ref||"
    print_table(console, title, ("precision", "x", *(f">{config}" for config in MAIN), ">allowed", ">met"), rows)


def _print_products(console: Console, measured: Measured, shape: Shape, threads: int) -> None:
    """A line a product of few rows."""
    rows: list[list[str] | None] = []
    few = [row for row in measured.rows if (row.shape, row.threads) == (shape, threads) and row.batch in FEW_ROWS]
    for batch, its in groupby(sorted(few, key=lambda row: row.batch), key=lambda row: row.batch):
        for row in its:
            marks = "*" * row.chosen + "+" * row.chosen_fast
            ratio, share = decimals(measured.times(row, DENSE)), f"{100 * measured.share(row):.0f}"
            said = (format_time(row.median), share, ratio, f"{row.error:.1e}")
            rows.append([row.kernel + marks, row.config, str(batch), *said])
        rows.append(None)
    title = f"{by(shape)}, {counted(threads, 'thread')} (auto takes *, with precision='fast' +)"
    headings = ("kernel", "weights", ">N", ">time", ">% of read", f">x {DENSE}", ">error")
    print_table(console, title, headings, rows)


def _print_automatic(console: Console, measured: Measured) -> None:
    rows: list[list[str] | None] = []
    for part in (measured.automatic(), [row for row in measured.small if row.chosen]):
        for batch, its in groupby(part, key=lambda row: row.batch):
            for row in its:
                ratios = [decimals(measured.times(row, name)) for name in _AUTO_TERMS]
                rows.append([str(batch), by(row.shape), row.config, row.kernel, format_time(row.median), *ratios])
            rows.append(None)
    title = f"What auto takes, {counted(AUTO_THREADS, 'thread')}: times as fast as dense products"
    headings = (">N", "shape", "weights", "kernel", ">time", *(f">{name}" for name in _AUTO_TERMS))
    print_table(console, title, headings, rows, (">time",))


def _verdict(met: bool | None) -> str:
    return {None: "", True: "yes", False: "no"}[met]
