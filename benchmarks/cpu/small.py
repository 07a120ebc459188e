"""Small layers, whose products take microseconds: what `auto` takes beside torch's own product, called as users do."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from benchmarks.cpu.measured import AUTO_THREADS, TORCH_FP32, Shape, Timed
from benchmarks.targets import MAIN
from codegemm.choice import select
from codegemm.devices import CPU
from codegemm.engines.cpu import device
from codegemm.formats import random_weight
from codegemm.formats.weight import Weight
from codegemm.kernel import Product
from codegemm.measuring import conditions
from codegemm.measuring.accuracy import exact, inputs, relative_error
from codegemm.measuring.stopwatch import Candidate, turn

SHAPES: tuple[Shape, ...] = ((384, 384),)
BATCHES = (1, 16)
_DTYPE = np.dtype(np.float32)
_CACHES = 1.25  # so many times what the last level holds are torch's copies, out of cache as ours


def run(rounds: int, budget: float) -> list[Timed]:
    """Times with as many threads as there are now, in interleaved rounds of as many seconds a turn."""
    return [row for shape in SHAPES for n in BATCHES for row in _products(shape, n, rounds, budget)]


def _products(shape: Shape, n: int, rounds: int, budget: float) -> list[Timed]:
    """torch's product of n rows, and one of `auto` for each configuration."""
    x, weights = inputs(shape[1], n, _DTYPE), {config: random_weight(shape, config) for config in MAIN}
    calls = {(TORCH_FP32, ""): _torch(weights[MAIN[0]], x)}
    for config, weight in weights.items():
        kernel = select(Product.of(weight.spec, n, _DTYPE), CPU)
        calls[kernel.name, config] = Candidate(kernel, weight, [n], _DTYPE).rotating_call(x)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, (call, _) in calls.items():
            conditions.settle()
            seconds[key].append(turn(call, budget)[0])
    return [
        Timed(
            shape, AUTO_THREADS, kernel, config, n, tuple(seconds[kernel, config]), bytes_read=0, chosen=bool(config),
            chosen_fast=False, error=relative_error(y, exact(weights[config or MAIN[0]], x)),
        )
        for (kernel, config), (_, y) in calls.items()
    ]  # fmt: skip


def _torch(weight: Weight, x: npt.NDArray) -> tuple[Callable[[], float], npt.NDArray]:
    """torch's product of tensors that are there, with the next copy of the weight, and where it writes."""
    import torch

    matrix, y = torch.from_numpy(weight.dequantize(np.float32)), np.full((len(x), weight.shape[0]), np.nan, np.float32)
    count = -(-int(_CACHES * device.last_level_cache()) // (matrix.numel() * matrix.itemsize))
    copies, rows, out = (
        itertools.cycle([matrix.clone().T for _ in range(count)]),
        torch.from_numpy(x),
        torch.from_numpy(y),
    )

    def call() -> float:
        transposed = next(copies)
        begin = time.perf_counter()
        torch.mm(rows, transposed, out=out)
        return time.perf_counter() - begin

    return call, y
