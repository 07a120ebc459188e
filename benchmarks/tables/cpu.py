"""What processors measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.cpu.targets import AUTO_THREADS, FULL, TORCH_BF16, TORCH_FP32
from benchmarks.tables import files, markdown, speed
from benchmarks.tables.files import Row
from benchmarks.targets import MAIN
from codegemm.measuring.stopwatch import NOISY
from codegemm.reporting import by, counted


def summary() -> str:
    """README's: the first machine's means over the shapes of Llama-3-8B."""
    return speed.means(speed.summed_up(files.of_llama(files.rows(files.COMPARED[0]))))


def means() -> str:
    """Those of every machine, and how far its times can be trusted."""
    return "\n".join(map(_machine, files.COMPARED))


def _machine(file: str) -> str:
    result = files.read(file)
    rows, machine = files.of_llama(result["rows"]), result["machine"]
    paths = ", ".join(dict.fromkeys(row["path"] for row in result["rows"] if row["path"]))
    where = f"{machine['device']}{f' ({paths})' if paths else ''}, {counted(machine['threads'], 'thread')}"
    return f"{where}, {_timing(rows)} ([{file}](../benchmarks/results/{file})):\n\n{speed.means(rows)}"


def _timing(rows: list[Row]) -> str:
    """How products were timed, and what can be said of it."""
    if not all(row.get("rounds") for row in rows):
        return "medians, one kernel after the other"
    noisy = sum(row["noisy"] for row in rows)
    return (
        f"medians of {len(rows[0]['rounds'])} rounds, {100 * noisy / len(rows):.0f} % of the times varying by more "
        f"than {100 * NOISY:.0f} %"
    )


def ratios() -> str:
    """What `make cpu` measured, a line for each machine."""
    lines = [["", "NumPy", "torch float32", "torch bfloat16", "% of read", "% of read, fast"]]
    for file in files.RATIOS:
        result = files.read(file)
        found = {target["statement"]: target["found"] for target in result["targets"]}
        slowest = [_of(found, f"the slowest: times {name} ") for name in ("dense", TORCH_FP32, TORCH_BF16)]
        shares = [_of(found, f"{kind}, N = 1, {AUTO_THREADS} threads: share") for kind in ("full", "fast")]
        cells = [*(f"{each:.2f}" for each in slowest), *(f"{100 * each:.0f}" for each in shares)]
        lines.append([f"{_told(result)} ([{file}](../benchmarks/results/{file}))", *cells])
    return markdown.table(lines)


def _of(found: dict[str, float], words: str) -> float:
    """What the one statement with these words found."""
    [value] = [value for statement, value in found.items() if words in statement]
    return value


def _told(result: dict[str, Any]) -> str:
    return f"{result['machine']['device']} ({result['machine']['path']}), {counted(AUTO_THREADS, 'thread')}"


def slower_than_psumbook() -> str:
    """The products of `make cpu` for which `auto` took a kernel that was slower than `psumbook`, a line for each."""
    lines = []
    for file in files.RATIOS:
        result = files.read(file)
        for row, ratio in _beaten(result["rows"]):
            rows_of_x = counted(row["batch"], "row")
            where = f"{_told(result)}: {by(row['shape'])}, {row['config']}, {rows_of_x} of x"
            lines.append(f"- {where}: `{row['kernel']}`, and `{FULL}` is {ratio:.1f} times as fast\n")
    return "".join(lines) or "- none\n"


def _beaten(rows: list[Row]) -> Iterator[tuple[Row, float]]:
    """Rows that `auto` took, and how many times as fast `psumbook` was."""
    measured = [row for row in rows if row["threads"] == AUTO_THREADS and row["config"] in MAIN]
    own = {_product(row): row for row in measured if row["kernel"] == FULL}
    for row in measured:
        if row["chosen"] and _product(row) in own:
            pairs = zip(row["seconds"], own[_product(row)]["seconds"], strict=True)
            ratio = statistics.median(taken / other for taken, other in pairs)
            if ratio > 1:
                yield row, ratio


def _product(row: Row) -> tuple[Any, ...]:
    return *row["shape"], row["config"], row["batch"]
