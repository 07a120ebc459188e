"""The paper's numbers and ours side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.tables import files, markdown
from codegemm.reporting import counted
from codegemm.reproduction import report
from codegemm.reproduction.table import Number

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
    parts = [f"Paper: {its['paper']}. Here: {where}.{busy}\n", *map(_table, its["tables"]), "".join(missing)]
    return "".join(f"\n{part}" for part in parts if part)


def _table(its: dict[str, Any]) -> str:
    """Rows and columns are the paper's, but for those that ratios are to."""
    columns = [column for column in its["columns"] if not _is_base(its, column)]
    cells = dict(_cells(its))
    rows = dict.fromkeys(row for row, _ in cells)
    lines = [["", *columns]]
    lines += [[row, *(cells[row, column] for column in columns)] for row in rows if not _is_base(its, row)]
    terms = its["in_terms"] or its["unit"]
    said = " ".join(filter(None, (its["caption"], its["note"])))
    return f"{_title(its)}{terms and f' ({terms})'}:\n\n{markdown.table(lines)}\n{said}\n"


def _is_base(its: dict[str, Any], label: str) -> bool:
    return bool(its["in_terms"]) and label == its["baseline"]


def _title(its: dict[str, Any]) -> str:
    kind = "Table" if its["name"].startswith("table") else "Figure"
    return f"{kind} {its['name'].removeprefix(kind.lower())}: {its['title']}"


def _cells(its: dict[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    """By row and column."""
    numbers = its["ratios"] if its["ratios"]["ours"] else its
    noisy = {tuple(place) for place in its["noisy"]}
    for place, (label, *ours) in enumerate(numbers["ours"]):
        paper = numbers["paper"][place][1:] if numbers["paper"] else None
        for number, column in enumerate(its["columns"]):
            text = _told(ours[number], its, column) + "!" * ((label, column) in noisy)
            yield (label, column), text if paper is None else f"{_told(paper[number], its, column)} / {text}"


def _told(number: Number, its: dict[str, Any], column: str) -> str:
    if its["ratios"]["ours"]:
        return report.ratio(number) or "-"
    return report.told(number, its["unit"] or column)
