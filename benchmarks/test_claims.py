"""What the project states of speed on a CPU, measured: it fails where this machine does not reach it."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from codegemm.comparison.selection import compared_kernels
from codegemm.formats import random_weight
from codegemm.measuring.accuracy import inputs
from codegemm.measuring.conditions import threads
from codegemm.measuring.stopwatch import Candidate

DTYPE = np.dtype(np.float32)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g128"])
def test_psumbook_is_faster_than_dense(config, count, benchmark):
    """4096 x 4096: at least 1.8 times dense. The two take turns, so that a slow moment of the machine hits both."""
    weight, x = random_weight((4096, 4096), config), inputs(4096, 1, DTYPE)
    seconds: dict[str, list[float]] = {"dense": [], "psumbook": []}
    with threads(count):
        candidates = [Candidate(kernel, weight, [1], DTYPE) for kernel in compared_kernels("cpu", list(seconds))]
        for _ in range(10):
            for name, candidate in zip(seconds, candidates, strict=True):
                seconds[name] += candidate.measure(x, 0.05)[1].seconds
        benchmark.group = f"4096 x 4096, batch 1, {count} threads"
        benchmark.pedantic(candidates[1].rotating_call(x)[0], rounds=50, warmup_rounds=3)
    ratio = statistics.median(seconds["dense"]) / statistics.median(seconds["psumbook"])
    benchmark.extra_info.update(threads=count, times_dense=ratio)
    assert ratio >= 1.8
