"""Every kernel on real and random weights: `pytest benchmarks --benchmark-compare` works between commits.

A group is a shape and a batch; within it the kernels are one parametrised benchmark. `extra_info` has the device, the
bytes that the kernel reads, its error and its GB/s. Weights rotate through more copies than the last-level cache
holds, as in `codegemm compare`.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from codegemm import devices
from codegemm.comparison import measure, sources
from codegemm.devices import Device
from codegemm.kernel import Product
from codegemm.registry import refusal

ENGINE = "cpu" if devices.unavailable() else "cuda"
DEVICE = Device.parse(ENGINE)
DTYPE = np.dtype(np.float32 if ENGINE == "cpu" else np.float16)
SHAPES = [(4096, 4096), (14336, 4096), (4096, 14336)]
BATCHES = [1, 4, 16]
WEIGHTS = ["m1v4g128", "m2v8g128", "m2v8g-1", "m1v8b16g-1", "e8p"]
KERNELS = measure.compared_kernels(ENGINE, None)


def cases():
    """(shape, batch, configuration, kernel), one shape at batch 1 quick and the others slow."""
    for shape, batch, config, kernel in itertools.product(SHAPES, BATCHES, WEIGHTS, KERNELS):
        if kernel.name in measure.DENSE and config != WEIGHTS[0]:
            continue  # the same for all weights
        quick = shape == SHAPES[0] and (batch == 1 or config == WEIGHTS[0])
        label = "" if kernel.name in measure.DENSE else f"-{config}"
        yield pytest.param(
            shape, batch, config, kernel, id=f"{shape[0]}x{shape[1]}-n{batch}-{kernel.name}{label}",
            marks=() if quick else pytest.mark.slow,
        )  # fmt: skip


@pytest.mark.parametrize(("shape", "batch", "config", "kernel"), cases())
def test_product(shape, batch, config, kernel, benchmark):
    weight = sources.random_weight(shape, config)
    product = Product.of(weight.spec, batch, DTYPE)
    reason = refusal(kernel, product, DEVICE)
    if reason:
        pytest.skip(reason)
    x = measure.inputs(shape[1], batch, DTYPE)
    truth = measure.exact(weight, x)
    candidate = measure.Candidate(kernel, weight.to(DEVICE), [batch], DTYPE)
    call, _ = candidate.rotating_call(x)
    benchmark.group = f"{shape[0]} x {shape[1]}, batch {batch}"
    benchmark.pedantic(call, rounds=30, warmup_rounds=3)
    bytes_read = kernel.cost(product, DEVICE).bytes_read
    error = measure.relative_error(candidate.multiply(x), truth)
    benchmark.extra_info.update(
        device=measure.device.name() if ENGINE == "cpu" else devices.name(),
        threads=measure.get_num_threads(),
        weights=config,
        bytes_read=bytes_read,
        gigabytes_per_second=bytes_read / benchmark.stats.stats.median / 1e9,
        error=error,
    )
    assert error < (2e-2 if kernel.precision == "fast" else 1e-2 if kernel.name == "dense_bf16" else 1e-3)
