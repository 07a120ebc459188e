"""Rows as a table, and what is to be known beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from codegemm.hf.bench.runner import Row, Settings, times_dense
from codegemm.measuring.machine import Machine
from codegemm.measuring.stopwatch import NOISY
from codegemm.reporting import counted, decimals, open_console, print_table

_HEADINGS = ("", ">batch", ">ms a token", "quartiles", ">tokens/s", ">x dense", ">GB")
_OPTIONAL = ("quartiles", None)


def print_rows(
    title: str, rows: Sequence[Row], left_out: Mapping[str, str], settings: Settings, machine: Machine
) -> None:
    """A section for each batch, the fastest first."""
    console = open_console()
    console.print(f"{machine.device}, {machine.engine} engine, {counted(machine.threads, 'thread')}")
    for line in machine.disturbances():
        console.print(f"the machine was busy, so times say little: {line}", style="bold")
    lines: list[list[str] | None] = []
    for batch in sorted({row.batch for row in rows}):
        for row in sorted((row for row in rows if row.batch == batch), key=lambda row: row.median):
            lines.append(_line(row, rows))
        lines.append(None)
    print_table(console, title, _HEADINGS, lines, _OPTIONAL)
    console.print(
        f"a step of {counted(settings.tokens, 'token')} behind {settings.prompt_length} positions, medians of "
        f"{counted(settings.rounds, 'round')}; x dense: of the faster dense model"
    )
    marks = {
        f"!  the quartiles are more than {NOISY:.0%} of the median apart: the time says little": any(
            row.noisy for row in rows
        ),
        "c  steps are called one by one: no CUDA graph holds them": machine.engine == "cuda"
        and not all(row.graph for row in rows),
    }
    for text in (text for text, is_there in marks.items() if is_there):
        console.print(text)
    for name, reason in left_out.items():
        console.print(f"left out: {name}: {reason}")


def as_json(
    title: str, rows: Sequence[Row], left_out: Mapping[str, str], settings: Settings, machine: Machine
) -> dict[str, Any]:
    """Plain data: all rounds, and what is computed of them."""
    told = [
        vars(row) | {
            "median": row.median, "quartiles": row.quartiles, "tokens_per_second": row.tokens_per_second,
            "times_dense": times_dense(row, rows),
        }
        for row in rows
    ]  # fmt: skip
    return {
        "machine": machine.as_json(), "transformers": version("transformers"), "model": title,
        "settings": vars(settings), "rows": told, "left_out": dict(left_out),
    }  # fmt: skip


def _line(row: Row, rows: Sequence[Row]) -> list[str]:
    on_gpu = any(each.graph for each in rows)
    marks = ["!"] * row.noisy + ["c"] * (on_gpu and not row.graph)
    lower, upper = (f"{1e3 * each:.2f}" for each in row.quartiles)
    return [
        " ".join([row.name, *marks]),
        str(row.batch),
        f"{1e3 * row.median:.2f}",
        f"{lower}-{upper}",
        f"{row.tokens_per_second:.1f}",
        decimals(times_dense(row, rows)),
        f"{row.weight_bytes / 1e9:.2f}",
    ]
