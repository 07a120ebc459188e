"""`codegemm tune`: it measures, keeps the fastest and says so."""

import time

import numpy as np
import pytest
from click.testing import CliRunner
from support.kernels import Twice, joined

import codegemm
from codegemm import registry, tables, tuning
from codegemm.cli import cli
from codegemm.devices import CPU
from codegemm.engines.cpu import device
from codegemm.measuring import conditions, sources
from codegemm.measuring.stopwatch import Timing
from codegemm.quantize.progress import Progress
from codegemm.tables import Choice

SINGLE = np.dtype(np.float32)
SHAPE = (64, 128)


@pytest.fixture
def kernels():
    """None is chosen by its estimate."""
    never = {"estimate": lambda product, device: float("inf")}
    steady = Twice(name="steady", automatic=True, refuses=lambda product, device: None, **never)
    with joined(Twice(name="quick", automatic=True, **never), steady, Twice(name="manual", **never)) as made:
        yield made


@pytest.fixture
def clock(monkeypatch):
    """Times by kernel, in place of the clock's; which candidates were measured."""
    seconds = {"quick": 1e-6, "steady": 2e-6, "manual": 1e-9}
    seen = []

    class Timed:
        def __init__(self, kernel, weight, batches, dtype):
            self._kernel = kernel
            seen.append((kernel.name, tuple(batches), dtype.name, weight.device))

        def measure(self, x, budget):
            time = seconds.get(self._kernel.name, 1.0)
            return None, Timing((9 * time, time, time / 9), "calls", 3)

    monkeypatch.setattr(tuning, "Candidate", Timed)
    return seen


def tune(batches, **options):
    case = sources.shape_case(SHAPE, ["m1v4g-1"])
    with Progress("tuning", False) as progress:
        return tuning.tune([case], batches, CPU, SINGLE, 0, progress)


def test_the_fastest_automatic_kernel_is_kept(tuned_cache, kernels, clock, make_weight):
    weight = make_weight(*SHAPE, "m1v4g-1")
    before = codegemm.plan(weight, 1).kernel.name
    found, place = tune([8, 1, 8])
    assert [m.choice for m in found] == [
        Choice("m1v4g-1", SHAPE, (1, 1), "float32", "quick"),
        Choice("m1v4g-1", SHAPE, (8, 8), "float32", "steady"),
    ]
    assert list(found[0].seconds)[:2] == ["quick", "steady"]
    assert found[0].seconds["quick"] == 1e-6  # the median
    assert found[0].before == before
    assert set(tables.tuned(CPU)) == {m.choice for m in found}
    assert place.is_relative_to(tuned_cache)
    assert ("quick", (1,), "float32", "cpu") in clock
    assert ("steady", (1, 8), "float32", "cpu") in clock
    assert not any(name in ("manual", "dense", "reference") for name, *_ in clock)
    for n, name in ((1, "quick"), (2, "quick"), (4, "steady"), (16, "steady")):
        assert codegemm.plan(weight, n).kernel.name == name
    assert codegemm.plan(weight, 17).kernel.name not in ("quick", "steady")


def test_a_kernel_that_is_gone_is_passed_over(tuned_cache, kernels, clock, make_weight):
    tune([1])
    kernels[0].automatic = False
    weight = make_weight(*SHAPE, "m1v4g-1")
    registry.changed()
    assert codegemm.plan(weight, 1).kernel.name not in ("quick", "steady")


def run(*arguments):
    return CliRunner().invoke(cli, ["tune", "--engine", "cpu", *arguments], standalone_mode=False)


def test_the_command(tuned_cache, kernels, clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    done = run("--shape", "64x128", "--shape", "32x100", "--config", "m1v4", "--batch", "1,8", "--dtype", "float16")
    assert done.exception is None, done.output
    lines = done.output.splitlines()
    [first] = [line for line in lines if "64 x 128" in line and "quick" in line]
    assert "1.0 us" in first
    assert "steady x 2.00" in first
    assert sum("32 x 100" in line for line in lines) == 2
    assert done.output.rstrip().endswith(str(next(tuned_cache.iterdir())))
    assert {choice.dtype for choice in tables.tuned(CPU)} == {"float16"}


def test_names_are_those_of_the_formats(tuned_cache, kernels, clock):
    done = run("--shape", "64x128", "--config", " m1v4g32+rotated,e8p3,m1v4", "--batch", "1")
    assert done.exception is None, done.output
    assert {choice.weights for choice in tables.tuned(CPU)} == {"m1v4g32+rotated", "e8p3", "m1v4g-1"}


def test_real_measurements(tuned_cache, monkeypatch, kernels, make_weight):
    """With its own clock: the kernel that waits is not the fastest."""
    monkeypatch.setattr(device, "last_level_cache", lambda: 1 << 12)
    monkeypatch.setattr(conditions, "settle", lambda: None)
    steady = kernels[1]
    for kernel in registry.registered("cpu"):
        if kernel not in kernels:
            monkeypatch.setattr(type(kernel), "automatic", False)
    run_quickly = steady.run
    steady.run = lambda *arguments: (time.sleep(0.005), run_quickly(*arguments))
    found, _ = tune([1])
    assert list(found[0].seconds) == ["quick", "steady"]
    assert found[0].seconds["steady"] >= 0.005


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--batch", "0"), "0 is not in the range x>=1"), (("--config", ","), "',': names nothing"),
     (("--shape", "64"), "'64': must be <out_features>x<in_features>"), (("--config", "m1"), "configuration 'm1'"),
     (("--engine", "cuda"), "cuda: CuPy")],
)  # fmt: skip
def test_arguments_are_checked(arguments, message, monkeypatch):
    monkeypatch.setattr("codegemm.devices.unavailable", lambda: "CuPy finds no GPU")
    assert message in str(run(*arguments).exception)
