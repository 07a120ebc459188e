"""What GPUs measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.tables import files, markdown, speed
from benchmarks.tables.files import Row
from codegemm.reporting import by, decimals

NOTHING = (
    "No time on a GPU is stated here, since none was measured: `codegemm predict` says what the cost model expects.\n"
)


def tables(whole: bool = True) -> str:
    """For each GPU the geometric means over all shapes, and what `auto` takes for one row of x, shape by shape; not
    `whole`: the means of README's products alone."""
    text, reports = "", files.of_gpus()
    for device in dict.fromkeys(report["device"] for report in reports):
        parts = [report for report in reports if report["device"] == device]
        rows = [row for report in parts for row in report["rows"]]
        shapes = len({tuple(row["shape"]) for row in rows})
        text += f"\n{device}, a copy moving {copied(parts) / 1e9:.0f} GB/s, geometric means over {shapes} layers of "
        text += f"Llama-3:\n\n{speed.means(rows if whole else speed.summed_up(rows))}"
        if whole:
            text += f"\nOne row of x, the kernel that `auto` takes:\n\n{_single(rows)}"
    return text or NOTHING


def copied(parts: Sequence[dict[str, Any]]) -> float:
    """Bytes a second that a copy moves."""
    return statistics.median(report["bandwidth"] for report in parts)


def _single(rows: Sequence[Row]) -> str:
    """Microseconds, bytes a second and ratios of the chosen kernels at N = 1."""
    lines = [["shape", "weights", "kernel", "us", "GB/s", "% of copy", "times dense"]]
    for row in rows:
        if row["batch"] == 1 and row["chosen"]:
            lines.append([
                by(row["shape"]), row["config"], f"`{row['kernel']}`",
                f"{row['seconds'] * 1e6:.1f}", f"{row['bytes_read'] / row['seconds'] / 1e9:.0f}",
                f"{100 * row['bandwidth_share']:.0f}", decimals(row["times_dense"]),
            ])  # fmt: skip
    return markdown.table(lines)
