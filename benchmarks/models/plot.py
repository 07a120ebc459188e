"""How far quantised models' predictions are from the dense model's, over the bits of a weight: a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models.cases import CALIBRATED, DISTILLED, FED_BACK, INTEGERS, NEAREST, PLAIN
from benchmarks.models.results import Found, text_names
from codegemm.exploration.plot import place
from codegemm.reporting import new_figure, write_picture

# Okabe and Ito's colours, told apart by the colour-blind, and markers, told apart without colours.
_MARKS = {
    PLAIN: ("o", "#56B4E9"),
    CALIBRATED: ("s", "#0072B2"),
    DISTILLED: ("D", "#009E73"),
    NEAREST: ("^", "#E69F00"),
    FED_BACK: ("v", "#D55E00"),
}
_SIZE = (9.2, 4.6)  # 1196 pixels across
_LEAST = 1e-5  # a logarithmic axis has no zero


def write_plot(found: Sequence[Found], path: str | Path) -> None:
    """A panel for each text, as PNG. Ways of one configuration are joined by a line, the best of them has its name."""
    names = text_names(list(found))
    figure, [panels] = new_figure(1, len(names), _SIZE)
    for panel, name in zip(panels, names):
        _draw(panel, found, name)
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("bits per weight", fontsize=8)
    spans = [panel.get_ylim() for panel in panels]
    for panel in panels:
        panel.set_ylim(min(low for low, _ in spans), max(high for _, high in spans))
    panels[0].set_ylabel("KL(dense || quantised), nats a token", fontsize=8)
    figure.legend(handles=_legend(found), loc="outside lower center", ncols=len(_MARKS), fontsize=8, frameon=False)
    figure.suptitle("SmolLM2-135M, nearer to the dense model is lower", fontsize=9)
    figure.draw_without_rendering()  # settles the layout: labels are placed in pixels
    figure.set_layout_engine("none")
    for panel, name in zip(panels, names):
        _label(panel, found, name)
    write_picture(figure, path)


def _point(found: Found, text: str) -> tuple[float, float]:
    return found.bits, max(found.of("kl")[text], _LEAST)


def _draw(panel: Any, found: Sequence[Found], text: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    for config in {each.case.config: None for each in found}:
        line = [_point(each, text) for each in found if each.case.config == config]
        panel.plot(*zip(*line), color="#bbbbbb", linewidth=1, zorder=1)
    for each in found:
        marker, colour = _MARKS[each.case.way]
        panel.plot(*_point(each, text), marker, color=colour, markersize=5, zorder=2)
    panel.set_yscale("log", subs=range(2, 10))
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(labelsize=8)
    panel.margins(x=0.14, y=0.08)
    panel.grid(True, which="major", color="#e4e4e4", linewidth=0.6, zorder=0)
    panel.set_axisbelow(True)


def _label(panel: Any, found: Sequence[Found], text: str) -> None:
    """Names of configurations, each below or beside the best of its ways."""
    best: dict[str, Found] = {}
    for each in found:
        config = each.case.config
        if config not in best or _point(each, text)[1] < _point(best[config], text)[1]:
            best[config] = each
    named = list(best.values())
    others = [each for each in found if each not in named]
    texts = [
        panel.text(0, 0, each.case.config, fontsize=6.5, transform=None,
                   color="#777777" if each.case.way in INTEGERS else "black")
        for each in named
    ]  # fmt: skip
    # Points without a name take no place of their own; they are there so that no label covers them.
    sizes = [text.get_window_extent().size for text in texts] + [(0.0, 0.0)] * len(others)
    points = panel.transData.transform([_point(each, text) for each in (*named, *others)])
    for label, (left, bottom) in zip(texts, place(np.asarray(points), sizes, panel.get_window_extent().extents)):
        label.set_position((left, bottom))


def _legend(found: Sequence[Found]) -> list[Any]:
    from matplotlib.lines import Line2D

    used = {each.case.way for each in found}
    return [
        Line2D([], [], linestyle="", marker=marker, color=colour, markersize=5, label=way)
        for way, (marker, colour) in _MARKS.items()
        if way in used
    ]
