"""A comparison's result as a picture: bars by kernel and weights, a panel for each shape, a shade for each batch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codegemm.comparison import report
from codegemm.comparison.result import Result, Row
from codegemm.reporting import counted, new_figure, write_picture

_COLUMNS = 3  # panels beside each other
_LABELS, _BARS, _BAR = 1.9, 3.1, 0.11  # inches: names, the longest bar, a bar's height
_FONT = 7
_LIGHTEST, _DARKEST = 0.35, 0.95  # of the shades


def write_plot(result: Result, path: str | Path) -> None:
    """Times dense, as PNG; wrong products are not drawn."""
    from matplotlib.patches import Patch

    cases = {title: _products(result, rows) for title, rows in result.by_case().items()}
    batches = sorted({row.batch for row in result.rows})
    shades = _shades(len(batches))
    columns = min(_COLUMNS, len(cases))
    lines = -(-len(cases) // columns)
    most = max((len(products) for products in cases.values()), default=1)
    width = 0.2 + columns * (_LABELS + _BARS)
    height = 1.1 + lines * (0.9 + most * (len(batches) + 1) * _BAR)
    figure, panels = new_figure(lines, columns, (width, height))
    for panel in panels.flat[len(cases) :]:
        panel.remove()
    for panel, (title, products) in zip(panels.flat, cases.items()):
        _draw(panel, title, products, dict(zip(batches, shades)))
    machine = result.machine
    rounds = " of rounds, whiskers their quartiles" if any(row.rounds for row in result.rows) else ""
    text = (
        f"Speed in multiples of dense {'float32' if machine.engine == 'cpu' else 'float16'}: medians{rounds}; "
        f"weights out of cache; {machine.device}, {counted(machine.threads, 'thread')}"
    )
    lines_above = [text, *report.busy(result)]
    figure.suptitle("\n".join(_wrapped(line, width, 9) for line in lines_above), fontsize=9)
    handles = [Patch(color=shade, label=f"batch {batch}") for batch, shade in zip(batches, shades)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=8, frameon=False)
    write_picture(figure, path)


def _products(result: Result, rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    """Rows by name and batch, of one kernel beside each other; the dense product, which is 1, is a line."""
    drawn = [row for row in rows if row.kernel != "dense" and row.times_dense is not None and not row.wrong]
    kernels = list(dict.fromkeys(row.kernel for row in drawn))
    found: dict[str, dict[int, Row]] = {}
    for row in sorted(drawn, key=lambda row: kernels.index(row.kernel)):
        found.setdefault(" ".join(filter(None, result.label(row))), {})[row.batch] = row
    return found


def _draw(panel: Any, title: str, products: dict[str, dict[int, Row]], shades: dict[int, Any]) -> None:
    pitch = len(shades) + 1
    for place, rows in enumerate(products.values()):
        for number, (batch, shade) in enumerate(shades.items()):
            row = rows.get(batch)
            if row is None or row.times_dense is None:
                continue
            y, ratio = place * pitch + number, row.times_dense
            fast, slow = (ratio * row.seconds / quartile for quartile in row.quartiles)
            whiskers = [[max(0, ratio - slow)], [max(0, fast - ratio)]]
            panel.barh(y, ratio, 1, color=shade)
            panel.errorbar(ratio, y, xerr=whiskers, color="black", linewidth=0.6)
            panel.annotate(
                f"{ratio:.2f}", (max(fast, ratio), y), (2, 0), textcoords="offset points", fontsize=_FONT - 1.5,
                verticalalignment="center",
            )  # fmt: skip
    middle = (len(shades) - 1) / 2
    panel.set_yticks([place * pitch + middle for place in range(len(products))], list(products), fontsize=_FONT)
    panel.set_ylim(max(1, len(products)) * pitch - 1, -1)
    panel.margins(x=0.12)
    panel.axvline(1, color="black", linewidth=0.8, linestyle=":", zorder=0)
    panel.tick_params(axis="x", labelsize=_FONT)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("times dense (dotted: 1)", fontsize=_FONT)
    panel.set_title(_wrapped(title, _BARS, 8), fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _shades(count: int) -> list[Any]:
    """Of one hue, from light to dark: told apart in print and by the colour-blind."""
    from matplotlib import colormaps

    step = (_DARKEST - _LIGHTEST) / max(1, count - 1)
    return [colormaps["Blues"](_DARKEST if count == 1 else _LIGHTEST + step * number) for number in range(count)]


def _wrapped(text: str, inches: float, points: float) -> str:
    """In lines that are no wider than that."""
    return textwrap.fill(text, max(20, int(inches * 72 / (0.55 * points))), break_long_words=True)
