"""A comparison's result as rich tables, JSON and a plot."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codegemm.comparison.measure import Row
from codegemm.comparison.runner import Result
from codegemm.files import replace_file


def print_tables(result: Result) -> None:
    """One table per shape, the geometric mean over shapes, and what was left out."""
    console = open_console()
    machine = result.machine
    path = f" ({', '.join(result.paths)})" if result.paths else ""
    read = "read" if machine.engine == "cpu" else "copy"
    console.print(
        f"{machine.device}, {machine.engine} engine{path}, {machine.threads} thread{'s' * (machine.threads != 1)}; "
        f"memory bandwidth ({read}) {machine.bandwidth / 1e9:.1f} GB/s",
        highlight=False,
    )
    for title, rows in result.by_case().items():
        console.print(_case_table(title, rows, len(result.paths) > 1, machine.engine))
    if len(result.by_case()) > 1:
        console.print(_mean_table(result))
    for info in result.left_out:
        console.print(f"left out: {info.name}: {info.reason}", highlight=False, markup=False)
    for title, reasons in result.skipped.items():
        for config, reason in reasons.items():
            console.print(f"left out: {title}: {config}: {reason}", highlight=False, markup=False)


def open_console() -> Any:
    """rich's console; piped output has no width of its own and gets what tables need."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=140)


def write_json(result: Result, path: str | Path) -> None:
    """The machine and every row; seconds, bytes and ratios unrounded."""
    data = {
        "machine": asdict(result.machine),
        "rows": [asdict(row) for row in result.rows],
        "left_out": {info.name: info.reason for info in result.left_out},
        "skipped": result.skipped,
    }
    replace_file(path, [json.dumps(data, indent=1).encode() + b"\n"])


def write_plot(result: Result, path: str | Path) -> None:
    """Times dense by batch, a panel for each shape, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = result.by_case()
    columns = min(3, len(cases))
    lines = -(-len(cases) // columns)
    label = _labels(result)
    labels = list(dict.fromkeys(label(row) for row in result.rows if row.kernel != "dense"))
    colours = dict(zip(labels, pyplot.get_cmap("tab20").colors * (1 + len(labels) // 20)))
    figure, panels = pyplot.subplots(
        lines, columns, figsize=(1.5 + 4.2 * columns, 1.4 + 3 * lines), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(cases) :]:
        panel.remove()
    for panel, (title, rows) in zip(panels.flat, cases.items()):
        _draw_case(panel, title, [(label(row), row) for row in rows], colours)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colours[label]) for label in labels]
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, title="kernel, weights", title_fontsize=8)
    machine = result.machine
    figure.suptitle(
        f"Speed in multiples of dense {'float32' if machine.engine == 'cpu' else 'float16'}; weights out of cache, "
        f"medians; {machine.device}, {machine.threads} threads",
        fontsize=10,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    pyplot.close(figure)
    replace_file(path, [buffer.getvalue()])


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


def _case_table(title: str, rows: list[Row], several_paths: bool, engine: str) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", title_style="bold")
    with_original = any(row.error_to_original is not None for row in rows)
    table.add_column("kernel")
    if several_paths:
        table.add_column("path")
    table.add_column("weights")
    for heading in ("bits/weight", "batch", "time", "GB/s", "% of bandwidth", "x dense", "error"):
        table.add_column(heading, justify="right")
    if with_original:
        table.add_column("error to original", justify="right")
    ordered = sorted(rows, key=lambda row: row.batch)
    for row, following in zip(ordered, [*ordered[1:], None]):
        cells = [
            row.kernel,
            *([row.path] if several_paths else []),
            row.config,
            f"{row.bits_per_weight:.3f}".rstrip("0").rstrip("."),
            str(row.batch),
            format_time(row.seconds) + (" call by call" if engine == "cuda" and row.timed == "calls" else ""),
            f"{row.bytes_read / row.seconds / 1e9:.1f}",
            f"{100 * row.bandwidth_share:.0f}",
            "" if row.times_dense is None else f"{row.times_dense:.2f}",
            f"{row.error:.1e}",
        ]
        if with_original:
            cells.append(f"{row.error_to_original:.3f}")
        table.add_row(*cells, end_section=following is not None and following.batch != row.batch)
    return table


def _mean_table(result: Result) -> Any:
    from rich.table import Table

    table = Table(title="Geometric mean of x dense over the shapes", title_justify="left", title_style="bold")
    several_paths = len(result.paths) > 1
    table.add_column("kernel")
    if several_paths:
        table.add_column("path")
    table.add_column("weights")
    means = result.means()
    batches = sorted({batch for *_, batch, _, _ in means})
    for batch in batches:
        table.add_column(f"batch {batch}", justify="right")
    table.add_column("shapes", justify="right")
    cells = {(kernel, path, config, batch): mean for kernel, path, config, batch, mean, _ in means}
    counts = {(kernel, path, config): count for kernel, path, config, _, _, count in means}
    for (kernel, path, config), count in counts.items():
        row_means = (cells.get((kernel, path, config, batch)) for batch in batches)
        names = (kernel, path, config) if several_paths else (kernel, config)
        table.add_row(*names, *("" if mean is None else f"{mean:.2f}" for mean in row_means), str(count))
    return table


def _labels(result: Result) -> Callable[[Row], str]:
    several_paths = len(result.paths) > 1
    return lambda row: " ".join(filter(None, (row.kernel, row.config, row.path if several_paths else "")))


def format_time(seconds: float) -> str:
    """In microseconds, from a thousand of them on in milliseconds."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms"
