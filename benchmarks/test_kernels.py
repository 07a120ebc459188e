"""The products of the paper's experiments by every kernel: `pytest benchmarks --benchmark-autosave`, and later
`--benchmark-compare`, follow them between commits; `-m quick` takes two minutes.

A group is a shape and a number of rows of x; within it a kernel and its weights are the parameter. `extra_info` has
the machine, the bytes that the kernel reads, its GB/s and its error. Weights have random codes and rotate through more
copies than the last-level cache holds, as in `codegemm compare`. On a GPU a time has the call's own in it.
"""

from __future__ import annotations

import pytest

from benchmarks import grid
from benchmarks.held import Weights
from codegemm.measuring import conditions
from codegemm.measuring.machine import Machine
from codegemm.registry import registered
from codegemm.reporting import by

ENGINE = conditions.engine_of("auto")
BENCHMARKS = grid.benchmarks(ENGINE)
MACHINE = ("engine", "device", "threads", "bandwidth", "commit", "compiler", "system")  # what times depend on
SECONDS, LEAST, MOST = 0.5, 5, 50  # of a benchmark, and how many calls it has


@pytest.fixture(scope="session")
def machine():
    told = Machine.here(ENGINE).as_json()
    return {name: told[name] for name in MACHINE}


@pytest.fixture(scope="module")
def weights():
    return Weights(ENGINE, max(its.batch for its in BENCHMARKS))


def parameters():
    """Skipped where the engine hasn't the kernel, so that no weight is made for it."""
    known = {kernel.name: kernel for kernel in registered(ENGINE)}
    for its in BENCHMARKS:
        kernel = known.get(its.kernel)
        reason = f"the engine {ENGINE} has no kernel {its.kernel}" if kernel is None else kernel.unavailable()
        marks = [pytest.mark.quick] * its.quick + [pytest.mark.skip(reason=reason)] * (reason is not None)
        yield pytest.param(its, kernel, id=its.name, marks=marks)


@pytest.mark.parametrize(("its", "kernel"), list(parameters()))
def test_product(its, kernel, weights, machine, benchmark):
    try:
        held = weights.held(its.shape, its.config)
        kernel, product = held.product(kernel, its.batch)
        candidate = held.candidate(kernel, product)
    except (ValueError, MemoryError) as error:
        pytest.skip(str(error))
    x = held.x[: its.batch]
    call, _ = candidate.rotating_call(x)
    benchmark.group = f"{by(its.shape)}, batch {its.batch}"
    benchmark.pedantic(call, rounds=rounds(call))
    error = held.truth.error(candidate.ready(x).result())
    bytes_read = kernel.cost(product, held.device).bytes_read
    benchmark.extra_info.update(
        device=machine["device"],
        machine=machine,
        weights=its.config,
        path=kernel.path(),
        bytes_read=bytes_read,
        error=error,
    )
    if benchmark.stats is not None:  # as with --benchmark-disable
        benchmark.extra_info["gigabytes_per_second"] = bytes_read / benchmark.stats.stats.median / 1e9
    assert error <= kernel.tolerance(product)


def rounds(call):
    """As many calls as fit into SECONDS, at least LEAST and at most MOST, behind one that warms up."""
    call()
    return min(MOST, max(LEAST, int(SECONDS / call())))
