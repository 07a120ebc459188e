"""Fair timing of a kernel: warm-up, medians, weights rotated through more copies than the last-level cache holds.

On a GPU products are captured in a CUDA graph, one after the other, and timed as it replays, with an output in x's
dtype; errors come from another call, with a float32 output.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import devices
from codegemm.devices import CPU, move, to_host
from codegemm.engines.cpu import device
from codegemm.engines.cuda import library, timing
from codegemm.engines.cuda.gpu import cache_and_memory
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel, Product
from codegemm.measuring import conditions
from codegemm.measuring.accuracy import relative_error
from codegemm.products import Plan

NOISY = 0.1  # quartiles are further apart than this share of their median
# Caches in multiples of which weights are rotated. A processor's replaces what was used longest ago; a GPU's seems to
# replace at random, so that of 1.25 times its size most would still be there after a round.
_CACHE_FACTOR = {"cpu": 1.25, "cuda": 4.0}
_MEMORY_SHARE = 8  # copies take this part of the free memory, but there are at least two
_MOST_COPIES = 10_000  # of weights so small that time is not the memory's
_WARM_UP = 3
_MIN_CALLS, _MAX_CALLS = 7, 300
_ROUNDED = 1e-2  # the error of rounding to any dtype of x is less
_GRAPH_CALLS = 40  # products of a graph, at least: its own start must not count


def varies(median: float, quartiles: tuple[float, float]) -> bool:
    """Whether times differ so much that their median says little."""
    lower, upper = quartiles
    return upper - lower > NOISY * median


@dataclass(frozen=True)
class Timing:
    """Seconds of a product in each call, replay or round. how: `graph` (replayed) or `calls` (one by one). calls: how
    many were timed."""

    seconds: tuple[float, ...]
    how: str
    calls: int

    @property
    def median(self) -> float:
        """Of all."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper one."""
        lower, upper = np.percentile(self.seconds, (25, 75))
        return float(lower), float(upper)

    @property
    def noisy(self) -> bool:
        """Whether they differ so much that the median says little."""
        return varies(self.median, self.quartiles)


@dataclass(frozen=True)
class Ready:
    """A product that only has to be called.

    call: multiplies by the next copy of the weight (or by all of them, in a graph) and gives the seconds of one
    product. result: what it gives, in float32, by one more call into a poisoned output.
    """

    call: Callable[[], float]
    how: str
    result: Callable[[], npt.NDArray]


class Candidate:
    """A kernel and a weight, with the copies that its timing rotates through.

    beside: how many others hold copies at the same time.
    """

    def __init__(
        self, kernel: Kernel, weight: Weight, batches: Sequence[int], dtype: np.dtype, beside: int = 0
    ) -> None:
        self._device = weight.device
        self._plans = {n: Plan(weight, Product.of(weight.spec, n, dtype), kernel) for n in batches}
        prepared = kernel.prepared(weight)
        # x and y stay in cache, as they do in a model; the weight does not.
        product = Product.of(weight.spec, 1, dtype)
        size = max(1, kernel.cost(product, weight.device).bytes_read - product.x_bytes)
        if self._device == CPU:
            cache, free = device.last_level_cache(), device.available_memory()
        else:
            cache, free = cache_and_memory(self._device)
        wanted = -(-int(_CACHE_FACTOR[kernel.engine] * cache) // size)
        affordable = max(2, free // max(_MEMORY_SHARE, 2 * beside) // size)
        self._copies = [prepared, *(copy.deepcopy(prepared) for _ in range(min(wanted, affordable, _MOST_COPIES) - 1))]

    def rotating_call(self, x: npt.NDArray) -> tuple[Callable[[], float], Any]:
        """A call that multiplies by the next copy and gives its seconds, and the output in x's dtype that it writes."""
        bound, rows, out = self._operands(x, x.dtype)
        return self._rotating(bound, rows, out), out

    def measure(self, x: npt.NDArray, budget: float) -> tuple[npt.NDArray, Timing]:
        """A product (float32) and the seconds of each call or replay, until `budget` seconds are over."""
        if self._device == CPU:
            conditions.settle()
        ready = self.ready(x)
        times = _timed(ready.call, _WARM_UP if self._device == CPU else 1, budget)
        return ready.result(), Timing(times, ready.how, len(times))

    def ready(self, x: npt.NDArray) -> Ready:
        """The product of x, ready to be timed."""
        bound, rows, out = self._operands(x, np.dtype(np.float32))
        multiply = self._rotating(bound, rows, out)
        if self._device == CPU:

            def again() -> npt.NDArray:
                out.fill(np.nan)  # so that nothing is left of calls before
                multiply()
                return out

            return Ready(multiply, "calls", again)
        # As torch users have it.
        narrow = self._operands(x, x.dtype)[2]
        timing.warm_up(self._device)
        try:
            call, how = self._replayed(bound, rows, narrow), "graph"
        except Exception as error:  # every library raises another type
            warnings.warn(f"{bound.kernel.name} is timed call by call: no CUDA graph holds it: {error}", stacklevel=2)
            call, how = self._rotating(bound, rows, narrow), "calls"

        def result() -> npt.NDArray:
            multiply()
            y, timed = to_host(out), to_host(narrow).astype(np.float32)
            # What the timed products left must be the same, rounded; else its error is told.
            return y if relative_error(timed, y) < _ROUNDED else timed

        return Ready(call, how, result)

    def _replayed(self, bound: Plan, x: Any, out: Any) -> Callable[[], float]:
        """Seconds of a product in a graph that goes through all copies, some times over.

        Raises for a kernel that allocates or waits, which no graph can hold, whatever CuPy does.
        """
        kernel = bound.kernel
        product = Product(bound.weight.spec, len(x), bound.dtype, out.dtype)
        workspace = library.new_workspace(kernel.workspace(product, self._device))
        runs = [kernel.bind(prepared, product) for prepared in self._copies]
        # Whole rounds: else some copies would come again before the others.
        turns = runs * -(-_GRAPH_CALLS // len(runs))
        graph = timing.Graph([partial(run, x, out, workspace, None) for run in turns], self._device)
        out[...] = np.nan
        devices.synchronize()  # the graph runs on a stream of its own
        return lambda: graph.time() / len(turns)

    def _operands(self, x: npt.NDArray, dtype: np.dtype) -> tuple[Plan, Any, Any]:
        """The plan, x and a poisoned output of that dtype on the weight's device."""
        bound = self._plans[len(x)]
        out = np.full((len(x), bound.weight.shape[0]), np.nan, dtype)
        if self._device == CPU:
            return bound, x, out
        return bound, move(x, self._device), move(out, self._device)

    def _rotating(self, bound: Plan, x: Any, out: Any) -> Callable[[], float]:
        """A call that multiplies by the next copy, finished when it returns, and gives its seconds."""
        plans = []
        for prepared in self._copies:
            plans.append(copy.copy(bound))
            plans[-1].prepared = prepared
        turns = itertools.cycle(plans)

        def call() -> float:
            plan = next(turns)
            plan.decide(x, out)
            if self._device != CPU:
                return timing.time_call(lambda: plan(x, out=out), self._device)
            begin = time.perf_counter()
            plan(x, out=out)
            return time.perf_counter() - begin

        return call


def repeated(call: Callable[[], float], budget: float, least: int = 1, most: float = math.inf) -> tuple[float, ...]:
    """What `call` gives, time after time until `budget` seconds are over; `least` times in any case."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < least or (time.perf_counter() - begin < budget and len(times) < most):
        times.append(call())
    return tuple(times)


def turn(call: Callable[[], float], budget: float) -> tuple[float, int]:
    """What `call` gives in the middle of as many calls as fit into `budget` seconds (one at least), behind some that
    warm up, and how many they were."""
    repeated(call, budget / 5)
    times = repeated(call, budget)
    return statistics.median(times), len(times)


def _timed(call: Callable[[], float], warm_up: int, budget: float) -> tuple[float, ...]:
    """The seconds of call after call, the first ones left out."""
    for _ in range(warm_up):
        call()
    return repeated(call, budget, _MIN_CALLS, _MAX_CALLS)
