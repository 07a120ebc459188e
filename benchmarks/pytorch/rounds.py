"""Calls that take turns: each has one in every round, every second round backwards."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Call = Callable[[], object]
Seconds = dict[str, list[float]]


def run(calls: Mapping[str, Call], rounds: int, each: int) -> Seconds:
    """The seconds of one call in each round, of `each` one after the other, by the calls' names."""
    seconds: Seconds = {name: [] for name in calls}
    for call in calls.values():
        call()
    for number in range(rounds):
        for name in reversed(calls) if number % 2 else calls:
            call = calls[name]
            call()  # after another's turn
            begin = time.perf_counter()
            for _ in range(each):
                call()
            seconds[name].append((time.perf_counter() - begin) / each)
    return seconds


def quartiles(numbers: Sequence[float]) -> tuple[float, float, float]:
    """The lower one, the median and the upper one."""
    lower, median, upper = statistics.quantiles(numbers, n=4, method="inclusive")
    return lower, median, upper
