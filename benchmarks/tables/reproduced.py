"""The paper's numbers and ours side by side."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import files, markdown
from codegemm.reporting import counted
from codegemm.reproduction import report
from codegemm.reproduction.table import Number, Table

_HEAD = """
## Beside the paper

The experiments of the CodeGEMM paper, from `codegemm reproduce --json FILE`: the paper's number / ours. Absolute times
are another machine's, so what stands here are ratios, wherever there is something to be told in terms of. `!` marks a
time that varies.
"""


def section() -> str:
    """Of every machine that made the experiments; nothing where there is none."""
    machines = [_machine(file, its) for file, its in files.reproductions().items()]
    return "".join([_HEAD, *machines]) if machines else ""


def _machine(file: str, its: dict[str, Any]) -> str:
    machine = its["machine"]
    where = f"{machine['device']}, {counted(machine['threads'], 'thread')} ([{file}](../benchmarks/results/{file}))"
    busy = "".join(f" The machine was busy: {told}." for told in its["disturbances"])
    missing = [f"- left out: {name}: {reason}\n" for name, reason in its["missing"].items()]
    parts = [f"Paper: {its['paper']}. Here: {where}.{busy}\n", *map(_table, map(Table.of_json, its["tables"]))]
    return "".join(f"\n{part}" for part in (*parts, "".join(missing)) if part)


def _table(table: Table) -> str:
    """Rows and columns are the paper's, but for those that ratios are to."""
    rows, columns = ([label for label in labels if label != table.baseline] for labels in (table.rows, table.columns))
    cells = {cell[:2]: _told(table, cell) for cell in table.cells()}
    lines = [["", *columns], *([row, *(cells[row, column] for column in columns)] for row in rows)]
    terms = table.in_terms or table.unit
    said = " ".join(filter(None, (table.caption, *table.notes)))
    return f"{report.title(table)}{terms and f' ({terms})'}:\n\n{markdown.table(lines)}\n{said}\n"


def _told(table: Table, cell: tuple[str, str, Number, Number, Number, Number]) -> str:
    """The paper's number and ours, as ratios where there are such."""
    row, column, theirs, their_ratio, ours, our_ratio = cell
    noisy = "!" * ((row, column) in table.noisy)
    if table.ratio is not None:
        told, mine = (report.ratio(each) or "-" for each in (their_ratio, our_ratio))
    else:
        told, mine = (report.told(each, table.unit or column) for each in (theirs, ours))
    return f"{mine}{noisy}" if table.paper is None else f"{told} / {mine}{noisy}"
