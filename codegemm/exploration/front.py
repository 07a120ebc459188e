"""Which of several trade-offs nobody would give up for another."""

from __future__ import annotations

from collections.abc import Sequence


def pareto(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """For each point whether it is on the Pareto front; less is better in every coordinate.

    It is unless another point is at most as large in all coordinates and less in one. Equal points stand together.
    """
    return [not any(_beats(other, point) for other in points) for point in points]


def _beats(other: tuple[float, ...], point: tuple[float, ...]) -> bool:
    return other != point and all(other_cost <= cost for other_cost, cost in zip(other, point))
