"""An analytic model of a launch: what each part of a GPU has to do, and how long the busiest takes.

It ranks kernels for `auto` where nothing was measured, and its times are predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from codegemm.engines.cuda.gpu import Gpu

LAUNCH = 1.3e-6  # seconds from one launch to the next that waits for it, in a graph
START = 1500.0  # clocks of a kernel's start and its first loads, which nothing hides
MEMORY_SHARE = 0.9  # of the data sheet's bandwidth that a copy reaches
L2_BYTES = 24.0  # a clock and multiprocessor, all of them at once
ISSUED = 4.0  # warp instructions a clock and multiprocessor
_ISSUE_SHARE = 0.85
_OVERLAP = 0.99  # of fitted terms that hide behind memory: what is left ranks two kernels that both wait for it
# Clocks that a multiprocessor's tensor cores take for an m16n8k16 of fp16 with fp32 sums: from data sheets, on sm_90
# and later for mma.sync, which does not reach the rate of wgmma. GeForce cards halve fp32 sums.
_MMA_CLOCKS = {80: 2.0, 86: 8.0, 89: 8.0, 90: 1.65, 100: 1.65, 120: 8.0}


@dataclass(frozen=True)
class Work:
    """One launch or library's product, summed over the whole GPU.

    bytes_read, bytes_written: of memory, if every byte moves once. cached_bytes: how many of those L2 holds by then.
    l2_bytes: moved between L2 and multiprocessors beside those: gathers, partial sums. wavefronts: of shared memory.
    instructions: of whole warps. mma: m16n8k16. balance: share of the multiprocessors' time in which they have work,
    thread blocks coming in waves. latency: clocks that nothing hides. terms: clocks by what they are spent on, of a
    kernel whose times were measured and fitted: then their sum and the bytes of memory count. multiply_adds, lookups:
    as `Cost` has them; no time follows from them.
    """

    bytes_read: float = 0
    bytes_written: float = 0
    cached_bytes: float = 0
    l2_bytes: float = 0
    wavefronts: float = 0
    instructions: float = 0
    mma: float = 0
    balance: float = 1
    latency: float = 0
    terms: Mapping[str, float] = field(default_factory=dict)
    multiply_adds: float = 0
    lookups: float = 0

    @property
    def dram_bytes(self) -> float:
        """From and to memory."""
        return self.bytes_read + self.bytes_written - self.cached_bytes


def weighted(terms: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Clocks of each term of a cut, of which one costs so many."""
    return {name: weights[name] * value for name, value in terms.items()}


@lru_cache(maxsize=4096)
def fastest(candidates: Callable[..., list[Any]], estimate: Callable[..., float], *product: Hashable) -> Any:
    """The cut with the least estimated time among those of a product (spec, rows of x, GPU); searched for once."""
    spec, _, gpu = product
    return min(candidates(*product), key=lambda cut: estimate(cut, spec, gpu))


def seconds(works: Iterable[Work], gpu: Gpu) -> float:
    """Of launches one after the other."""
    return sum(sum(parts(work, gpu).values()) for work in works)


def parts(work: Work, gpu: Gpu) -> dict[str, float]:
    """The seconds whose sum a launch takes, by what they are spent on: its terms where it has them, else what nothing
    hides, and the GPU's busiest part. Neither is less than its bytes take from and to memory.
    """
    memory = work.dram_bytes / (MEMORY_SHARE * gpu.bandwidth)
    if work.terms:
        terms = {name: clocks / gpu.clock for name, clocks in work.terms.items()}
        missing = memory - _OVERLAP * sum(terms.values())
        return terms | {"memory": terms.get("memory", 0.0) + missing} if missing > 0 else terms
    clocks = gpu.multiprocessors * gpu.clock * work.balance
    known = max(arch for arch in _MMA_CLOCKS if arch <= gpu.arch)  # itself, or the newest older one
    busy = {
        "memory": memory,
        "L2": work.l2_bytes / (L2_BYTES * clocks),
        "wavefronts": work.wavefronts / clocks,
        "instructions": work.instructions / (ISSUED * _ISSUE_SHARE * clocks),
        "mma": work.mma * _MMA_CLOCKS[known] / clocks,
    }
    busiest = max(busy, key=busy.__getitem__)
    return {"latency": LAUNCH + work.latency / gpu.clock, busiest: busy[busiest]}


def bound(works: Iterable[Work], gpu: Gpu) -> str:
    """What launches wait for longest, one of their parts."""
    return longest(works, gpu)[1]


def longest(works: Iterable[Work], gpu: Gpu) -> tuple[float, str]:
    """The seconds that it takes, and what that is."""
    return max(max((time, name) for name, time in parts(work, gpu).items()) for work in works)


def balance(blocks: int, slots: int) -> float:
    """Share of their time in which `slots` places for thread blocks have one of `blocks` equal ones."""
    return blocks / (slots * -(-blocks // slots))
