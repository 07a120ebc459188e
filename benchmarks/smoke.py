"""One product of every kernel, checked against float64: whether anything works at all, in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks import layers
from benchmarks.layers import CONFIGS, DEVICE, DTYPE, Truth, planned
from codegemm import devices, plan
from codegemm.formats import random_weight
from codegemm.measuring.accuracy import inputs

SHAPE = (1024, 4096)
BATCHES = (1, 4, 16, 100)
WRONG = 1e-2  # no kernel of float16 errs so much


def run(seconds: float) -> bool:
    """Prints a line for each product, for about so many seconds; whether there were some, all right."""
    right, end, checked = True, time.monotonic() + seconds, 0
    for config in CONFIGS:
        weight = random_weight(SHAPE, config)
        x = inputs(SHAPE[1], max(BATCHES), DTYPE)
        truth, there = Truth(weight, x), weight.to(DEVICE)
        for kernel, product in planned([SHAPE], BATCHES, [config]):
            n = product.n
            if time.monotonic() > end:
                print(f"{config:11} N={n:<4} {kernel.name:14} no time was left")
                continue
            out = devices.move(np.full((n, SHAPE[0]), np.nan, np.float32), DEVICE)
            try:
                plan(there, n, DTYPE, kernel.full_name)(devices.move(x[:n], DEVICE), out=out)
                error = truth.error(devices.to_host(out))
                said = f"error {error:.0e}"
            except Exception as problem:
                error, said = np.nan, f"{type(problem).__name__}: {problem}"
            checked += 1
            is_right = error < WRONG
            right &= is_right
            print(f"{config:11} N={n:<4} {kernel.name:14} {'right' if is_right else 'WRONG'}  {said}", flush=True)
    return right and checked > 0


def builds() -> Iterator[Callable[[], object]]:
    """What it compiles."""
    yield from layers.builds([SHAPE], BATCHES)
