"""What work takes on the processor, by instruction set: what `auto` chooses a kernel by.

A kernel counts its work for a product, costs.json has what each piece of it takes: nanoseconds of one thread, written
by `python -m benchmarks.cpu.costs`, and on which processor; for instructions that no processor at hand had, numbers of
a related set. A choice depends on nothing else, so it is the same on all processors with the same instructions and for
any number of threads; `codegemm tune` makes it a machine's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from codegemm.engines.cpu import isa

FILE = Path(__file__).with_name("costs.json")


class Work(NamedTuple):
    """A product's, as one of a kernel's ways to do it counts it: how often there is each piece of it."""

    way: str
    counts: Mapping[str, float]


def measured(way: str) -> bool:
    """Whether there are numbers for this way with the chosen instructions."""
    return way in table().get(isa.chosen().name, {})


def seconds(work: Work) -> float | None:
    """Of one thread with the chosen instructions; None where nobody measured this way with them."""
    costs = table().get(isa.chosen().name, {}).get(work.way)
    return None if costs is None else 1e-9 * sum(count * costs[piece] for piece, count in work.counts.items())


@cache
def table() -> dict[str, dict[str, dict[str, float]]]:
    """Nanoseconds by instruction set, way and piece of work."""
    return {instructions: entry["nanoseconds"] for instructions, entry in read().items()}


def read() -> dict[str, Any]:
    """The file: by instruction set the `processor` that was measured, null for none, and `nanoseconds`."""
    return json.loads(FILE.read_text())
