"""Every kernel on real and random weights: `pytest benchmarks --benchmark-compare` works between commits.

A group is a shape and a batch; within it the kernels are one parametrised benchmark. `extra_info` has the device, the
bytes that the kernel reads, its error and its GB/s. Weights rotate through more copies than the last-level cache
holds, as in `codegemm compare`.
"""

from __future__ import annotations

import itertools

import pytest

from codegemm import devices
from codegemm.comparison.selection import DENSE, compared_kernels
from codegemm.devices import Device
from codegemm.formats import random_weight
from codegemm.kernel import Product
from codegemm.measuring import conditions, sources
from codegemm.measuring.accuracy import exact, inputs, relative_error
from codegemm.measuring.stopwatch import Candidate
from codegemm.registry import refusal

ENGINE = "cpu" if devices.unavailable() else "cuda"
DEVICE = Device.parse(ENGINE)
DTYPE = conditions.dtype_of(ENGINE)
SHAPES = [(4096, 4096), (14336, 4096), (4096, 14336)]
BATCHES = [1, 4, 16]
WEIGHTS = sources.RANDOM_CONFIGS
KERNELS = compared_kernels(ENGINE, None)


def cases():
    """(shape, batch, configuration, kernel), one shape at batch 1 quick and the others slow."""
    for shape, batch, config, kernel in itertools.product(SHAPES, BATCHES, WEIGHTS, KERNELS):
        if kernel.name in DENSE and config != WEIGHTS[0]:
            continue  # the same for all weights
        quick = shape == SHAPES[0] and (batch == 1 or config == WEIGHTS[0])
        label = "" if kernel.name in DENSE else f"-{config}"
        yield pytest.param(
            shape, batch, config, kernel, id=f"{shape[0]}x{shape[1]}-n{batch}-{kernel.name}{label}",
            marks=() if quick else pytest.mark.slow,
        )  # fmt: skip


@pytest.mark.parametrize(("shape", "batch", "config", "kernel"), cases())
def test_product(shape, batch, config, kernel, benchmark):
    weight = random_weight(shape, config)
    product = Product.of(weight.spec, batch, DTYPE)
    reason = refusal(kernel, product, DEVICE)
    if reason:
        pytest.skip(reason)
    x = inputs(shape[1], batch, DTYPE)
    candidate = Candidate(kernel, weight.to(DEVICE), [batch], DTYPE)
    call, _ = candidate.rotating_call(x)
    benchmark.group = f"{shape[0]} x {shape[1]}, batch {batch}"
    benchmark.pedantic(call, rounds=30, warmup_rounds=3)
    bytes_read = kernel.cost(product, DEVICE).bytes_read
    error = relative_error(candidate.measure(x, 0)[0], exact(weight, x))
    name, threads = conditions.machine(ENGINE)
    benchmark.extra_info.update(
        device=name,
        threads=threads,
        weights=config,
        bytes_read=bytes_read,
        gigabytes_per_second=bytes_read / benchmark.stats.stats.median / 1e9,
        error=error,
    )
    assert error < (2e-2 if kernel.precision == "fast" else 1e-2 if kernel.name == "dense_bf16" else 1e-3)
