"""A comparison's result as rich tables, JSON and a plot."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codegemm import reporting
from codegemm.comparison.result import Result, Row

if TYPE_CHECKING:
    from rich.table import Table


def print_tables(result: Result) -> None:
    """One table per shape, the geometric mean over shapes, and what was left out."""
    console = reporting.open_console()
    machine, cases = result.machine, result.by_case()
    path = f" ({', '.join(result.paths)})" if result.paths else ""
    read = "read" if machine.engine == "cpu" else "copy"
    console.print(
        f"{machine.device}, {machine.engine} engine{path}, {reporting.counted(machine.threads, 'thread')}; "
        f"memory bandwidth ({read}) {machine.bandwidth / 1e9:.1f} GB/s"
    )
    for title, rows in cases.items():
        console.print(_case_table(title, rows, result))
    if len(cases) > 1:
        console.print(_mean_table(result))
    for name, reason in result.left_out.items():
        console.print(f"left out: {name}: {reason}")
    for title, reasons in result.skipped.items():
        for config, reason in reasons.items():
            console.print(f"left out: {title}: {config}: {reason}")


def write_plot(result: Result, path: str | Path) -> None:
    """Times dense by batch, a panel for each shape, as PNG."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    def label(row: Row) -> str:
        return " ".join(filter(None, result.label(row)))

    cases, machine = result.by_case(), result.machine
    columns = min(3, len(cases))
    lines = -(-len(cases) // columns)
    labels = dict.fromkeys(label(row) for row in result.rows if row.kernel != "dense")
    colours = {name: colormaps["tab20"](number % 20) for number, name in enumerate(labels)}
    figure, panels = reporting.new_figure(lines, columns, (1.5 + 4.2 * columns, 1.4 + 3 * lines))
    for panel in panels.flat[len(cases) :]:
        panel.remove()
    for panel, (title, rows) in zip(panels.flat, cases.items()):
        _draw_case(panel, title, [(label(row), row) for row in rows], colours)
    handles = [Patch(color=colour) for colour in colours.values()]
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, title="kernel, weights", title_fontsize=8)
    figure.suptitle(
        f"Speed in multiples of dense {'float32' if machine.engine == 'cpu' else 'float16'}; weights out of cache, "
        f"medians; {machine.device}, {reporting.counted(machine.threads, 'thread')}",
        fontsize=10,
    )
    reporting.write_picture(figure, path)


def _draw_case(panel: Any, title: str, rows: list[tuple[str, Row]], colours: dict[str, Any]) -> None:
    labels = list(colours)
    batches = sorted({row.batch for _, row in rows})
    width = 0.85 / max(1, len(labels))
    for label, row in rows:
        if row.kernel == "dense" or row.times_dense is None:
            continue
        x = batches.index(row.batch) + (labels.index(label) - (len(labels) - 1) / 2) * width
        panel.bar(x, row.times_dense, width, color=colours[label])
    panel.axhline(1, color="black", linewidth=0.8)
    panel.set_title(title.replace(" (", "\n("), fontsize=8)
    panel.set_xticks(range(len(batches)), [f"batch {n}" for n in batches], fontsize=8)
    panel.set_ylabel("times dense", fontsize=8)
    panel.tick_params(axis="y", labelsize=8)


def _case_table(title: str, rows: list[Row], result: Result) -> Table:
    numbers = [">bits/weight", ">batch", ">time", ">GB/s", ">% of bandwidth", ">x dense", ">error"]
    with_original = any(row.error_to_original is not None for row in rows)
    table = reporting.new_table(title, *_names(result), *numbers, *[">error to original"] * with_original)
    for batch in sorted({row.batch for row in rows}):
        for row in (row for row in rows if row.batch == batch):
            by_calls = result.machine.engine == "cuda" and row.timed == "calls"
            table.add_row(
                *result.label(row),
                f"{row.bits_per_weight:.3f}".rstrip("0").rstrip("."),
                str(batch),
                reporting.format_time(row.seconds) + (" call by call" if by_calls else ""),
                f"{row.bytes_read / row.seconds / 1e9:.1f}",
                f"{100 * row.bandwidth_share:.0f}",
                reporting.decimals(row.times_dense),
                f"{row.error:.1e}",
                *([f"{row.error_to_original:.3f}"] if with_original else []),
            )
        table.add_section()
    return table


def _mean_table(result: Result) -> Table:
    batches = sorted({row.batch for row in result.rows if row.times_dense is not None})
    ratios: dict[tuple[str, ...], dict[int, list[float]]] = {}
    for row in result.rows:
        if row.times_dense is not None:
            ratios.setdefault(result.label(row), {}).setdefault(row.batch, []).append(row.times_dense)
    title = "Geometric mean of x dense over the shapes"
    table = reporting.new_table(title, *_names(result), *(f">batch {batch}" for batch in batches), ">shapes")
    for label, found in ratios.items():
        means = (statistics.geometric_mean(found[batch]) if batch in found else None for batch in batches)
        table.add_row(*label, *map(reporting.decimals, means), str(max(map(len, found.values()))))
    return table


def _names(result: Result) -> list[str]:
    """Headings of what `Result.label` tells."""
    return ["kernel", *["path"] * (len(result.paths) > 1), "weights"]
