"""Fair timing of a kernel: warm-up, medians, weights rotated through more copies than the last-level cache holds.

On a GPU products are captured in a CUDA graph, one after the other, and timed as it replays, with an output in x's
dtype; errors come from another call, with a float32 output.
"""

from __future__ import annotations

import copy
import itertools
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import devices
from codegemm.devices import CPU, move, to_host
from codegemm.engines.cpu import device, get_num_threads, isa, library, set_num_threads
from codegemm.engines.cuda import library as cuda_library
from codegemm.engines.cuda import timing
from codegemm.engines.cuda.gpu import cache_and_memory
from codegemm.engines.reference import product
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel, Product
from codegemm.products import Plan
from codegemm.registry import KernelInfo, registered
from codegemm.version import __version__

NOT_COMPARED = ("reference",)
# Kernels whose time depends on the shape alone: one row a shape stands for all its weights.
DENSE = ("dense", "dense_bf16")

# Caches in multiples of which weights are rotated. A processor's replaces what was used longest ago; a GPU's seems to
# replace at random, so that of 1.25 times its size most would still be there after a round.
_CACHE_FACTOR = {"cpu": 1.25, "cuda": 4.0}
_MEMORY_SHARE = 8  # copies take this part of the free memory, but there are at least two
_WARM_UP = 3
# The threads of a BLAS or OpenMP spin for some milliseconds after its last call, at the next kernel's expense.
_QUIET = 0.05
_MIN_CALLS, _MAX_CALLS = 7, 300
_ROUNDED = 1e-2  # the error of rounding to any dtype of x is less
_GRAPH_CALLS = 40  # products of a graph, at least: its own start must not count


@dataclass(frozen=True)
class Machine:
    """What the numbers were measured on. bandwidths: bytes a second that the processor reads or a GPU's copy moves,
    before and after all else; bandwidth: the larger, of which shares are told."""

    engine: str
    device: str
    threads: int
    bandwidth: float
    version: str = __version__
    numpy: str = np.__version__
    python: str = platform.python_version()
    bandwidths: tuple[float, ...] = ()

    def with_bandwidth(self, measured: float) -> Machine:
        """The same, its bandwidth measured once more."""
        bandwidths = (*(self.bandwidths or (self.bandwidth,)), measured)
        return replace(self, bandwidth=max(bandwidths), bandwidths=bandwidths)


@dataclass(frozen=True)
class Row:
    """One kernel, weight and batch. seconds: the median; timed: as `Timing.how`; error: against the dequantised weight
    in float64.

    path: the instruction set that a CPU kernel was compiled for, empty on a GPU.
    """

    case: str
    shape: tuple[int, int]
    kernel: str
    precision: str
    path: str
    config: str
    bits_per_weight: float
    batch: int
    seconds: float
    quartiles: tuple[float, float]
    calls: int
    timed: str
    bytes_read: int
    bandwidth_share: float
    times_dense: float | None
    error: float
    error_to_original: float | None


@dataclass(frozen=True)
class Timing:
    """Seconds of a product in each call or replay. how: `graph` (replayed) or `calls` (one by one)."""

    seconds: tuple[float, ...]
    how: str = "calls"

    @property
    def median(self) -> float:
        """Of all."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper one."""
        lower, upper = np.percentile(self.seconds, (25, 75))
        return float(lower), float(upper)


@contextmanager
def path(name: str) -> Iterator[None]:
    """The CPU kernels compiled for that instruction set; nothing without a name."""
    if not name:
        yield
        return
    before = os.environ.get(isa.VARIABLE)
    try:
        os.environ[isa.VARIABLE] = name
        library.forget()
        yield
    finally:
        del os.environ[isa.VARIABLE]
        if before is not None:
            os.environ[isa.VARIABLE] = before
        library.forget()


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """The same number of threads for the kernels, NumPy's BLAS and torch."""
    before = get_num_threads()
    count = before if count is None else count
    with ExitStack() as stack:
        set_num_threads(count)
        stack.callback(set_num_threads, before)
        from threadpoolctl import threadpool_limits

        stack.enter_context(threadpool_limits(count))
        if any(k.name == "dense_bf16" and k.unavailable() is None for k in registered("cpu")):
            import torch

            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(count)
        yield


def machine(engine: str) -> Machine:
    """This machine, its read bandwidth measured now."""
    if engine == "cpu":
        return Machine(engine, device.name(), get_num_threads(), bandwidth(engine))
    return Machine(engine, devices.name(), 1, bandwidth(engine))


def bandwidth(engine: str) -> float:
    """Bytes a second that the processor reads, or a GPU's copy moves, now."""
    return device.measure_bandwidth() if engine == "cpu" else timing.measure_bandwidth()


class Candidate:
    """A kernel and a weight, with the copies that its timing rotates through."""

    def __init__(self, kernel: Kernel, weight: Weight, batches: Sequence[int], dtype: np.dtype) -> None:
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
        affordable = max(2, free // _MEMORY_SHARE // size)
        self._copies = [prepared, *(copy.deepcopy(prepared) for _ in range(min(wanted, affordable) - 1))]

    def rotating_call(self, x: npt.NDArray) -> tuple[Callable[[], None], Any]:
        """A call that multiplies by the next copy, finished when it returns, and the output in x's dtype that it
        writes."""
        bound, rows, out = self._operands(x, x.dtype)
        turns = itertools.count()

        def call() -> None:
            self._time_call(bound, next(turns), rows, out)

        return call, out

    def multiply(self, x: npt.NDArray) -> npt.NDArray:
        """A product, float32."""
        bound, rows, out = self._operands(x, np.dtype(np.float32))
        self._time_call(bound, 0, rows, out)
        return to_host(out)

    def measure(self, x: npt.NDArray, budget: float) -> tuple[npt.NDArray, Timing]:
        """A product (float32) and the seconds of each call or replay, until `budget` seconds are over."""
        bound, rows, out = self._operands(x, np.dtype(np.float32))
        if self._device == CPU:
            time.sleep(_QUIET)
            times = self._repeat(partial(self._time_call, bound, x=rows, out=out), _WARM_UP, budget)
            return out, Timing(times)
        # As torch users have it.
        narrow = self._operands(x, x.dtype)[2]
        timing.warm_up(self._device)
        try:
            time_turn, how = self._replayed(bound, rows, narrow), "graph"
        except Exception as error:  # every library raises another type
            warnings.warn(f"{bound.kernel.name} is timed call by call: no CUDA graph holds it: {error}", stacklevel=2)
            time_turn, how = partial(self._time_call, bound, x=rows, out=narrow), "calls"
        times = self._repeat(time_turn, 1, budget)
        self._time_call(bound, 0, rows, out)
        y, timed = to_host(out), to_host(narrow).astype(np.float32)
        # What the timed products left must be the same, rounded; else its error is told.
        return (y if relative_error(timed, y) < _ROUNDED else timed), Timing(times, how)

    @staticmethod
    def _repeat(time_turn: Callable[[int], float], warm_up: int, budget: float) -> tuple[float, ...]:
        """What it says of turn after turn, the first ones left out."""
        for turn in range(warm_up):
            time_turn(turn)
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < _MIN_CALLS or (time.perf_counter() - begin < budget and len(times) < _MAX_CALLS):
            times.append(time_turn(warm_up + len(times)))
        return tuple(times)

    def _replayed(self, bound: Plan, x: Any, out: Any) -> Callable[[int], float]:
        """Seconds of a product in a graph that goes through all copies, some times over.

        Raises for a kernel that allocates or waits, which no graph can hold, whatever CuPy does.
        """
        kernel = bound.kernel
        product = Product(bound.weight.spec, len(x), bound.dtype, out.dtype)
        workspace = cuda_library.new_workspace(kernel.workspace(product, self._device))
        runs = [kernel.bind(prepared, product) for prepared in self._copies]
        # Whole rounds: else some copies would come again before the others.
        turns = runs * -(-_GRAPH_CALLS // len(runs))
        graph = timing.Graph([partial(run, x, out, workspace, None) for run in turns], self._device)
        out[...] = np.nan
        devices.synchronize()  # the graph runs on a stream of its own
        return lambda turn: graph.time() / len(turns)

    def _operands(self, x: npt.NDArray, dtype: np.dtype) -> tuple[Plan, Any, Any]:
        """The plan, x and a poisoned output of that dtype on the weight's device."""
        bound = self._plans[len(x)]
        out = np.full((len(x), bound.weight.shape[0]), np.nan, dtype)
        if self._device == CPU:
            return bound, x, out
        return bound, move(x, self._device), move(out, self._device)

    def _time_call(self, bound: Plan, turn: int, x: Any, out: Any) -> float:
        bound.prepared = self._copies[turn % len(self._copies)]
        if self._device != CPU:
            return timing.time_call(lambda: bound(x, out=out), self._device)
        begin = time.perf_counter()
        bound(x, out=out)
        return time.perf_counter() - begin


def compared_paths(engine: str, names: Sequence[str] | None) -> list[str]:
    """The instruction sets asked for, or the one that products take; on a GPU an empty one.

    Raises ValueError for one that this processor hasn't.
    """
    if engine != "cpu":
        if names:
            raise ValueError(f"paths {', '.join(names)}: the engine {engine} has none")
        return [""]
    known = [each.name for each in isa.available()]
    for name in names or ():
        if name not in known:
            raise ValueError(f"path {name!r}: this processor has {', '.join(known)}")
    return list(dict.fromkeys(names or [isa.chosen().name]))


def compared_kernels(engine: str, names: Sequence[str] | None, precision: str | None = None) -> list[Kernel]:
    """The engine's kernels by name, in the order asked for; without names all but the reference.

    precision: without names, only kernels of that precision, and what they are measured against.
    """
    known = {kernel.name: kernel for kernel in registered(engine)}
    if names is None:
        kept = [kernel for name, kernel in known.items() if name not in NOT_COMPARED]
        return [kernel for kernel in kept if precision in (None, kernel.precision) or kernel.name in DENSE]
    for name in names:
        if name not in known:
            raise ValueError(f"kernel {name!r}: the engine {engine} has {', '.join(known)}")
    return [known[name] for name in names]


def unusable(kernels: Sequence[Kernel]) -> list[KernelInfo]:
    """Those that can't run on this machine at all, with the reason."""
    reasons = ((kernel, kernel.unavailable()) for kernel in kernels)
    return [KernelInfo(kernel.name, kernel.engine, False, reason) for kernel, reason in reasons if reason]


def inputs(columns: int, rows: int, dtype: np.dtype, seed: int = 0) -> npt.NDArray:
    """Standard normal x [rows, columns]."""
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32).astype(dtype)


def relative_error(y: npt.NDArray, truth: npt.NDArray) -> float:
    """||y - truth|| / ||truth||."""
    norm = float(np.linalg.norm(truth))
    return float(np.linalg.norm(y.astype(np.float64) - truth)) / norm if norm else float(np.linalg.norm(y))


def exact(weight: Weight, x: npt.NDArray) -> npt.NDArray[np.float64]:
    """x @ W^T in float64."""
    return product(weight.to("cpu"), x)
