"""Calls captured in a CUDA graph, and how long it takes to replay: what they cost a GPU without the host's part."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from codegemm.engines.cuda import device as gpus


class Graph:
    """Calls that start something on the current stream, captured once in their order.

    The first of them runs before, since a capture must not load or allocate. Raises what a call raises, or CuPy's
    error for one that can't be captured.
    """

    def __init__(self, calls: Sequence[Callable[[], object]], device: str) -> None:
        import cupy

        self._device = device
        with gpus.using(device):
            gpus.synchronize()  # arrays made on the current stream are there
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
        with gpus.using(self._device), self._stream:
            return gpus.time_call(self._graph.launch, self._device)
