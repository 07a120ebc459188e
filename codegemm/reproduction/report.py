"""The paper's tables and ours for people, side by side."""

from __future__ import annotations

from collections.abc import Iterator

from codegemm.comparison.report import busy
from codegemm.reporting import counted, format_time, open_console, print_table
from codegemm.reproduction import paper
from codegemm.reproduction.runner import Reproduction
from codegemm.reproduction.table import Number, Table

_OPTIONAL = (">paper x", None)


def print_tables(found: Reproduction) -> None:
    """One for each experiment, its rows those of the paper, one section each; what is missing last."""
    console = open_console()
    console.print(f"paper: {paper.citation()}")
    console.print(f"here: {here(found)}")
    if found.result is not None:
        for line in busy(found.result):
            console.print(line, style="bold")
    for table in found.tables:
        console.print()
        print_table(console, title(table), headings(table), list(_lines(table)), _OPTIONAL)
        console.print(table.caption)
        if table.ratio is not None:
            console.print(f"x: {table.in_terms}")
        for note in table.notes:
            console.print(note)
    for name, reason in found.missing.items():
        console.print(f"left out: {name}: {reason}")


def here(found: Reproduction) -> str:
    """Whose times ours are."""
    if found.result is None:
        return f"predicted for {found.predicts} by counts of the kernels' work and its data sheet; nothing was measured"
    machine = found.result.machine
    path = f" ({', '.join(found.result.paths)})" if found.result.paths else ""
    return f"measured on {machine.device}, {machine.engine} engine{path}, {counted(machine.threads, 'thread')}"


def title(table: Table) -> str:
    """With its place in the paper."""
    kind, number = ("Table", table.name[5:]) if table.name.startswith("table") else ("Figure", table.name[6:])
    return f"{kind} {number}: {table.title}{' (ours predicted)' if table.predicted else ''}"


def headings(table: Table) -> list[str]:
    """Of the table in its long form."""
    ours = "predicted" if table.predicted else "here"
    ratios = table.ratio is not None
    paper_columns = [] if table.paper is None else [">paper", *[">paper x"] * ratios]
    return ["", "", *paper_columns, f">{ours}", *[f">{ours} x"] * ratios]


def _lines(table: Table) -> Iterator[list[str] | None]:
    before = None
    for row, column, *numbers in table.cells():
        if before not in (None, row) and len(table.columns) > 1:
            yield None
        theirs, their_ratio, ours, our_ratio = numbers
        unit = table.unit or column
        cells = [] if table.paper is None else [told(theirs, unit), *[ratio(their_ratio)] * (table.ratio is not None)]
        mark = "!" if (row, column) in table.noisy else ""
        cells += [told(ours, unit) + mark, *[ratio(our_ratio)] * (table.ratio is not None)]
        yield [row if row != before else "", column, *cells]
        before = row


def told(number: Number, unit: str) -> str:
    """A number in its unit; nothing where there is none."""
    if number is None:
        return "-"
    if unit in ("us", "time"):
        return format_time(number / 1e6)
    if unit in ("%", "% of memory"):
        return f"{number:.1f} %"
    if unit == "relative MSE":
        return f"{number:.4f}"
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def ratio(number: Number) -> str:
    """With two decimals."""
    return "" if number is None else f"{number:.2f}"
