"""A comparison's result as a picture: bars by kernel and weights, a panel for each shape, a shade for each batch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegemm.comparison import report
from codegemm.comparison.result import Result, Row
from codegemm.reporting import blank_figure, counted, new_figure, write_picture

_COLUMNS = 3  # panels beside each other
_LABELS, _BARS, _BAR = 1.9, 3.1, 0.11  # inches: names, the longest bar, a bar's height
_NARROW = 4.2  # inches: a picture of one panel
_LONGEST = 40  # characters of a name in a line
_FONT = 7
_LIGHTEST, _DARKEST = 0.35, 0.95  # of the shades


@dataclass(frozen=True)
class Bar:
    """A product in multiples of dense: by its median and the quartiles around it."""

    ratio: float
    slow: float
    fast: float

    @classmethod
    def of(cls, seconds: float, quartiles: tuple[float, float], times_dense: float) -> Bar:
        """By its times."""
        fast, slow = (times_dense * seconds / quartile for quartile in quartiles)
        return cls(times_dense, slow, fast)


Bars = Mapping[str, Mapping[int, Bar]]  # by name and batch


def write_plot(result: Result, path: str | Path) -> None:
    """Times dense, as PNG; wrong products are not drawn."""
    cases = {title: _bars(result, rows) for title, rows in result.by_case().items()}
    batches = sorted({row.batch for row in result.rows})
    shades = _shades(batches)
    columns = min(_COLUMNS, len(cases))
    lines = -(-len(cases) // columns)
    most = max((len(bars) for bars in cases.values()), default=1)
    width = 0.2 + columns * (_LABELS + _BARS)
    figure, panels = new_figure(lines, columns, (width, 1.1 + lines * (0.9 + _height(most, batches))))
    for panel in panels.flat[len(cases) :]:
        panel.remove()
    for panel, (title, bars) in zip(panels.flat, cases.items()):
        _draw(panel, bars, shades)
        panel.set_title(_wrapped(title, _BARS, 8), fontsize=8)
    machine = result.machine
    rounds = " of rounds, whiskers their quartiles" if any(row.rounds for row in result.rows) else ""
    text = (
        f"Speed in multiples of dense {'float32' if machine.engine == 'cpu' else 'float16'}: medians{rounds}; "
        f"weights out of cache; {machine.device}, {counted(machine.threads, 'thread')}"
    )
    lines_above = [text, *report.busy(result)]
    figure.suptitle("\n".join(_wrapped(line, width, 9) for line in lines_above), fontsize=9)
    _add_legend(figure, shades, False)
    write_picture(figure, path)


def case_figure(bars: Bars, predicted: bool = False) -> Any:
    """One case's, as narrow as a page on a phone; predicted bars are hatched outlines."""
    batches = sorted({batch for its in bars.values() for batch in its})
    figure = blank_figure((_NARROW, 0.9 + _height(len(bars), batches)))
    shades = _shades(batches)
    _draw(figure.subplots(), bars, shades, predicted)
    _add_legend(figure, shades, predicted)
    return figure


def _height(products: int, batches: Sequence[int]) -> float:
    """Of a panel's bars, in inches."""
    return products * (len(batches) + 1) * _BAR


def _bars(result: Result, rows: Sequence[Row]) -> dict[str, dict[int, Bar]]:
    """Of one kernel beside each other; the dense product, which is 1, is a line."""
    drawn = [row for row in rows if row.kernel != "dense" and row.times_dense is not None and not row.wrong]
    kernels = list(dict.fromkeys(row.kernel for row in drawn))
    found: dict[str, dict[int, Bar]] = {}
    for row in sorted(drawn, key=lambda row: kernels.index(row.kernel)):
        if row.times_dense is not None:
            bar = Bar.of(row.seconds, row.quartiles, row.times_dense)
            found.setdefault(" ".join(filter(None, result.label(row))), {})[row.batch] = bar
    return found


def _look(shade: Any, predicted: bool) -> dict[str, Any]:
    """Of a bar."""
    return {"fill": False, "edgecolor": shade, "hatch": "/////"} if predicted else {"color": shade}


def _add_legend(figure: Any, shades: Mapping[int, Any], predicted: bool) -> None:
    from matplotlib.patches import Patch

    said = ", predicted" if predicted else ""
    handles = [Patch(**_look(shade, predicted), label=f"batch {batch}{said}") for batch, shade in shades.items()]
    columns = min(len(handles), 2 if predicted else 8)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _draw(panel: Any, bars: Bars, shades: Mapping[int, Any], predicted: bool = False) -> None:
    pitch = len(shades) + 1
    for place, its in enumerate(bars.values()):
        for number, (batch, shade) in enumerate(shades.items()):
            bar = its.get(batch)
            if bar is None:
                continue
            y = place * pitch + number
            panel.barh(y, bar.ratio, 1, **_look(shade, predicted))
            if bar.fast > bar.slow:
                whiskers = [[max(0, bar.ratio - bar.slow)], [max(0, bar.fast - bar.ratio)]]
                panel.errorbar(bar.ratio, y, xerr=whiskers, color="black", linewidth=0.6)
            panel.annotate(
                f"{bar.ratio:.2f}", (max(bar.fast, bar.ratio), y), (2, 0), textcoords="offset points",
                fontsize=_FONT - 1.5, verticalalignment="center",
            )  # fmt: skip
    middle = (len(shades) - 1) / 2
    names = [textwrap.fill(name, _LONGEST, break_long_words=True) for name in bars]
    panel.set_yticks([place * pitch + middle for place in range(len(bars))], names, fontsize=_FONT)
    panel.set_ylim(max(1, len(bars)) * pitch - 1, -1)
    panel.margins(x=0.12)
    panel.axvline(1, color="black", linewidth=0.8, linestyle=":", zorder=0)
    panel.tick_params(axis="x", labelsize=_FONT)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("times dense (dotted: 1)", fontsize=_FONT)
    panel.spines[["top", "right"]].set_visible(False)


def _shades(batches: Sequence[int]) -> dict[int, Any]:
    """Of one hue, from light to dark: told apart in print and by the colour-blind."""
    from matplotlib import colormaps

    step = (_DARKEST - _LIGHTEST) / max(1, len(batches) - 1)
    return {
        batch: colormaps["Blues"](_DARKEST if len(batches) == 1 else _LIGHTEST + step * number)
        for number, batch in enumerate(batches)
    }


def _wrapped(text: str, inches: float, points: float) -> str:
    """In lines that are no wider than that."""
    return textwrap.fill(text, max(20, int(inches * 72 / (0.55 * points))), break_long_words=True)
