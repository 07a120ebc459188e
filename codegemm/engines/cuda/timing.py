"""How long a GPU takes for what calls start, one by one or replayed as a CUDA graph without the host's part, and how
fast it copies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from codegemm import devices
from codegemm.devices import FIRST_GPU, Device
from codegemm.engines.cuda import library

_SPIN_CLOCKS = 500_000  # a quarter of a millisecond: longer than any call's host time
_COPIED_BYTES = 1 << 30
_AGREE = 0.01  # what two medians may differ by on a GPU that is warm
_MOST_ROUNDS = 30


def time_call(call: Callable[[], object], device: Device) -> float:
    """Seconds that the GPU spends on what `call` starts on the current stream, queued before it begins."""
    import cupy

    with devices.using(device):
        spin = library.function("spin.cu", "spin", device, dependent=False)  # it must not overlap what is timed
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        spin((1,), (1,), (np.int64(_SPIN_CLOCKS),))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3


class Graph:
    """Calls that start something on the current stream, captured once in their order.

    The first of them runs before, since a capture must not load or allocate. Raises what a call raises, or CuPy's
    error for one that can't be captured.
    """

    def __init__(self, calls: Sequence[Callable[[], object]], device: Device) -> None:
        import cupy

        self._device = device
        with devices.using(device):
            devices.synchronize()  # arrays made on the current stream are there
            self._stream = cupy.cuda.Stream(non_blocking=True)
            with self._stream:
                calls[0]()
                self._stream.synchronize()
                self._stream.begin_capture()
                try:
                    for call in calls:
                        call()
                finally:
                    self._graph = self._stream.end_capture()

    def time(self) -> float:
        """Seconds of a replay on the GPU."""
        with devices.using(self._device), self._stream:
            return time_call(self._graph.launch, self._device)


def measure_bandwidth(device: Device = FIRST_GPU, repeats: int = 7, size: int = _COPIED_BYTES) -> float:
    """Bytes a second moved by a copy of `size` bytes, read and written counted: the median, once two of them agree.

    An idle GPU has lowered its clocks.
    """
    import cupy

    with devices.using(device):
        source = cupy.ones(size // 4, np.float32)
        target = cupy.empty_like(source)

        def median() -> float:
            return statistics.median(time_call(lambda: cupy.copyto(target, source), device) for _ in range(repeats))

        before, now = math.inf, median()
        for _ in range(_MOST_ROUNDS):
            if abs(now - before) <= _AGREE * now:
                break
            before, now = now, median()
    return 2 * source.nbytes / now


def measure_multiply_adds(device: Device = FIRST_GPU, repeats: int = 9, size: int = 4096) -> float:
    """Multiply-adds a second of cuBLAS's product of two matrices of so many rows in float16: by the median."""
    import cupy

    with devices.using(device):
        one = cupy.ones((size, size), np.float16)
        two, out = one.copy(), cupy.empty_like(one)
        times = [time_call(lambda: cupy.matmul(one, two, out=out), device) for _ in range(repeats + 1)]
    return size**3 / statistics.median(times[1:])


def warm_up(device: Device = FIRST_GPU) -> None:
    """Have the GPU's clocks raised, as they are while it works."""
    measure_bandwidth(device, 9, _COPIED_BYTES // 16)
