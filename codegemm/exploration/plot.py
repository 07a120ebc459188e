"""An exploration's result as a picture: error over size and over time, every point with its name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.exploration.measure import Measured
from codegemm.exploration.report import conditions, dense_product, error_name, title
from codegemm.exploration.runner import Exploration, Explored, pareto
from codegemm.formats.codebook_config import CodebookConfig
from codegemm.formats.format import format_of
from codegemm.reporting import new_figure, write_picture

# Okabe and Ito's colours, told apart by the colour-blind; by the number of codebooks.
_COLOURS = {1: "#0072B2", 2: "#D55E00", 3: "#009E73", 4: "#CC79A7"}
_MARKERS = {2: "v", 4: "o", 8: "s", 16: "D"}  # by the vector length
_OTHER = "*", "#000000"  # of other formats
_FRONT = "#555555"
_FONT = 6.5
_LEAST_ERROR = 1e-12  # a logarithmic axis has no zero


def write_plot(result: Exploration, path: str | Path) -> None:
    """A row of two panels for each matrix, as PNG."""
    shown = [explored for explored in result.matrices if explored.measured]
    figure, panels = new_figure(len(shown), 2, (15, 0.9 + 6.2 * len(shown)))
    for (size, time), explored in zip(panels, shown):
        _draw(size, explored, 0)
        _draw(time, explored, 2)
        size.set_title(title(explored), fontsize=9)
        size.set_xlabel("bits per weight")
        time.set_xlabel("time in multiples of the dense product's")
        time.axvline(1, color="black", linewidth=1, linestyle=":")
        time.set_title(f"dotted: {dense_product(explored, result.settings)}", fontsize=9)
    figure.legend(handles=_legend(shown), loc="outside lower center", ncols=11, fontsize=8, frameon=False)
    figure.suptitle(f"Smaller is better: {conditions(result)}", fontsize=9)
    figure.draw_without_rendering()  # settles the layout: labels are placed in pixels
    figure.set_layout_engine("none")
    for (size, time), explored in zip(panels, shown):
        _label_points(size, explored, 0)
        _label_points(time, explored, 2)
    write_picture(figure, path)


def _position(measured: Measured, axis: int, explored: Explored) -> tuple[float, float]:
    """(size or relative time, error)."""
    x = measured.seconds / explored.dense_seconds if axis == 2 else measured.bits_per_weight
    return x, max(measured.error, _LEAST_ERROR)


def _draw(panel: Any, explored: Explored, axis: int) -> None:
    """Points, those of the front of all three filled; as a line the front of the panel's own two."""
    points = [_position(measured, axis, explored) for measured in explored.measured]
    line = sorted(point for point, front in zip(points, pareto(points)) if front)
    panel.plot(*zip(*line), color=_FRONT, linewidth=1, zorder=1)
    for measured, front in explored.by_size():
        x, y = _position(measured, axis, explored)
        marker, colour = _mark_of(measured.core)
        face = colour if front else "white"
        panel.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=5, zorder=2)
    panel.set_ylabel(f"relative {error_name(explored)}")
    panel.set_yscale("log")
    if axis == 2:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(x=0.08, y=0.08)
    panel.grid(True, which="major", color="#e4e4e4", linewidth=0.6, zorder=0)
    panel.set_axisbelow(True)


def _mark_of(config: Any) -> tuple[str, str]:
    """Marker and colour."""
    return (_MARKERS[config.v], _COLOURS[config.m]) if isinstance(config, CodebookConfig) else _OTHER


def _label_points(panel: Any, explored: Explored, axis: int) -> None:
    """Names beside the points, with a line to those that had to go further away."""
    ordered = sorted(explored.by_size(), key=lambda pair: not pair[1])  # the front has the first choice of places
    points = panel.transData.transform([_position(measured, axis, explored) for measured, _ in ordered])
    bounds = panel.get_window_extent().extents
    texts = []
    for measured, front in ordered:
        name = measured.config.replace("+rotated", " R")
        texts.append(panel.text(0, 0, name, fontsize=_FONT, color="black" if front else "#777777", transform=None))
    sizes = [text.get_window_extent().size for text in texts]
    for text, point, (left, bottom), (width, height) in zip(texts, points, place(points, sizes, bounds), sizes):
        text.set_position((left, bottom))
        near = (min(max(point[0], left), left + width), min(max(point[1], bottom), bottom + height))
        if np.hypot(*(near - point)) > _NEAR:
            panel.annotate(
                "", near, point, xycoords="figure pixels", textcoords="figure pixels",
                arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "shrinkA": 3, "shrinkB": 0},
            )  # fmt: skip


_GAP = 5.0  # pixels between a point's middle and its label
_NEAR = 12.0  # up to so many a label is seen to be its point's
_DISTANCES = (1, 2.5, 4, 6, 9, 13, 18, 24)  # of labels, in gaps
_ANGLES = np.deg2rad([0, 180, 90, 270, 30, 330, 150, 210, 60, 300, 120, 240])

Box = tuple[float, float, float, float]


def place(
    points: npt.NDArray[np.float64], sizes: Sequence[tuple[float, float]], bounds: Box
) -> list[tuple[float, float]]:
    """The lower left corner of a label for each of points [n, 2]: the nearest free place, in the order given.

    sizes: (width, height) of the labels; bounds: (left, bottom, right, top) that they should stay in. Where there is
    no free place a label takes the one that overlaps least.
    """
    marks = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    taken: list[Box] = []
    for (x, y), (width, height) in zip(points, sizes):
        best, least = (x, y, x + width, y + height), np.inf
        for distance, angle in product(_DISTANCES, _ANGLES):
            across, up = np.cos(angle), np.sin(angle)
            left = x + across * (_GAP * distance + width / 2) - width / 2
            bottom = y + up * (_GAP * distance + height / 2) - height / 2
            box = (left, bottom, left + width, bottom + height)
            outside = width * height - _overlap(box, bounds)
            cost = sum(_overlap(box, other) for other in (*taken, *marks)) + outside
            if cost < least:
                best, least = box, cost
            if not cost:
                break
        taken.append(best)
    return [(left, bottom) for left, bottom, _, _ in taken]


def _overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _legend(shown: Sequence[Explored]) -> list[Any]:
    from matplotlib.lines import Line2D

    cores = [measured.core for explored in shown for measured in explored.measured]
    configs = [core for core in cores if isinstance(core, CodebookConfig)]
    others = sorted({format_of(core).name for core in cores if not isinstance(core, CodebookConfig)})

    mark = partial(Line2D, [], [], linestyle="", markersize=5)
    return [
        *(mark(marker="o", color=_COLOURS[m], label=f"m={m}") for m in sorted({config.m for config in configs})),
        *(mark(marker=_MARKERS[v], color="#777777", label=f"v={v}") for v in sorted({config.v for config in configs})),
        *(mark(marker=_OTHER[0], color=_OTHER[1], label=", ".join(others)) for _ in others[:1]),
        mark(marker="o", color="#777777", markerfacecolor="white", label="another is as good in size, error and time"),
        Line2D([], [], color=_FRONT, linewidth=1, label="Pareto front of the panel"),
    ]
