"""The least time that a product can take: by what it moves and computes, and by what the machine does in a second."""

from __future__ import annotations

from dataclasses import dataclass

from codegemm.kernel import Cost

MEMORY, MULTIPLY_ADDS, LOOKUPS = "memory", "multiply-adds", "lookups"


@dataclass(frozen=True)
class Rates:
    """Of a machine, a second: bytes from and to memory, multiply-adds, lookups; 0 for those that are not known."""

    bandwidth: float
    multiply_adds: float = 0
    lookups: float = 0


def bound(cost: Cost, rates: Rates) -> tuple[float, str]:
    """Seconds, and what takes them: the one of memory, multiply-adds and lookups that takes longest."""
    counts = {
        MEMORY: (cost.bytes_read + cost.bytes_written, rates.bandwidth),
        MULTIPLY_ADDS: (cost.multiply_adds, rates.multiply_adds),
        LOOKUPS: (cost.lookups, rates.lookups),
    }
    times = {name: count / rate for name, (count, rate) in counts.items() if rate}
    name = max(times, key=times.__getitem__)
    return times[name], name
