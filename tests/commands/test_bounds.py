"""What products are bound by: the arithmetic, what kernels count, and what rows and predictions tell of it."""

from dataclasses import replace

import numpy as np
import pytest

from codegemm.comparison.result import Row
from codegemm.devices import CPU
from codegemm.engines.cpu import device
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.formats.format import spec_of
from codegemm.kernel import Cost, Product
from codegemm.measuring.bounds import Rates, bound
from codegemm.measuring.machine import Machine
from codegemm.prediction import predict
from codegemm.registry import multiplies, refusal, registered
from codegemm.report import reading

RATES = Rates(bandwidth=1e9, multiply_adds=1e10, lookups=1e8)


@pytest.mark.parametrize(
    ("cost", "seconds", "name"),
    [
        (Cost(700, 300), 1e-6, "memory"),
        (Cost(700, 300, 9_999, 99), 1e-6, "memory"),
        (Cost(700, 300, 20_000, 100), 2e-6, "multiply-adds"),
        (Cost(700, 300, 20_000, 300), 3e-6, "lookups"),
    ],
)
def test_the_largest_binds(cost, seconds, name):
    assert bound(cost, RATES) == (pytest.approx(seconds), name)


def test_what_is_not_known_binds_nothing():
    assert bound(Cost(700, 300, 10**9, 10**9), Rates(1e9)) == (pytest.approx(1e-6), "memory")


def counts(kernel, product):
    cost = kernel.cost(product, CPU) if kernel.engine == "cpu" else None
    if cost is not None:
        return cost.multiply_adds, cost.lookups
    works = kernel.decide(product, KNOWN["h200"]).works
    return sum(work.multiply_adds for work in works), sum(work.lookups for work in works)


def is_refused(kernel, product):
    if kernel.engine == "cpu":
        return refusal(kernel, product, CPU)
    return not isinstance(kernel, CudaKernel) or kernel.refuses_on(product, KNOWN["h200"])


@pytest.mark.parametrize("engine", ["cpu", "cuda"])
@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g-1", "m1v8b16g-1", "e8p", "qtip", "m1v4g128+rotated"])
@pytest.mark.parametrize("n", [1, 3, 70])
def test_every_kernel_counts(engine, config, n):
    """Products by rebuilt weights take all multiply-adds; what looks up tables makes them and gathers entries."""
    spec = spec_of((256, 512), config)
    product = Product.of(spec, n, np.float32 if engine == "cpu" else np.float16)
    dense, counted = n * 256 * 512, 0
    for kernel in registered(engine, spec):
        if not multiplies(kernel, spec) or is_refused(kernel, product):
            continue
        counted += 1
        adds, lookups = counts(kernel, product)
        if lookups:
            m, v = (1, 4) if config.startswith("m1v4") else (2, 8)
            assert kernel.name in ("psumbook", "psumbook_fast", "aqlm")
            assert lookups == dense * m / v
            assert adds == n * 512 * m * 256
        else:
            assert adds == dense, kernel.name
    assert counted >= 2


@pytest.mark.parametrize(("engine", "entries"), [("cpu", 32), ("cuda", 256)])
def test_planes_share_tables(engine, entries):
    spec = spec_of((256, 512), "q3g128")
    [kernel] = [each for each in registered(engine, spec) if each.name == "lutgemm"]
    product = Product.of(spec, 2, np.float32 if engine == "cpu" else np.float16)
    assert counts(kernel, product) == (2 * 512 // 8 * entries, 2 * 256 * 3 * 512 // 8)


def test_rows_are_held_against_the_machine():
    """Anew where its bandwidth turns out larger."""
    machine = Machine("cpu", "a processor", 2, 1e9, multiply_adds=1e10, lookups=1e8)
    row = Row(
        case="", shape=(8, 8), kernel="one", precision="full", path="", config="m1v4", bits_per_weight=2.0, batch=1,
        seconds=1e-5, quartiles=(1e-5, 1e-5), rounds=(), calls=7, timed="calls", bytes_read=3000, bandwidth_share=0,
        times_dense=None, error=0.0, tolerance=1e-4, error_to_original=None, chosen=False, bytes_written=1000,
        multiply_adds=20_000,
    )  # fmt: skip
    slow, quick = (row.held_against(each) for each in (machine, replace(machine, bandwidth=4e9)))
    assert (slow.bound, slow.bound_seconds, slow.bandwidth_share) == ("memory", pytest.approx(4e-6), pytest.approx(0.3))
    assert (quick.bound, quick.bound_seconds) == ("multiply-adds", pytest.approx(2e-6))
    assert quick.bandwidth_share == pytest.approx(0.075)


def test_predictions_have_theirs():
    """Of all that a product waits for the longest part, which is no longer than all of it; a report shows it."""
    for row in predict(KNOWN["a100"], [(4096, 4096)], ["m1v4g128", "e8p"], [1, 16]):
        assert 0 < row.bound_seconds <= row.seconds
    for product in reading.predictions("a100").products:
        assert product.bound
        assert 0 < product.bound_share <= 1


def test_multiply_adds_are_measured():
    assert 1e7 < device.measure_multiply_adds(3, 128) < 1e13
