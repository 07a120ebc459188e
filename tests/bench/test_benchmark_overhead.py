"""What a product costs beside its kernel: that all kinds of calls are measured, and what is said of them."""

import pytest

from benchmarks.cpu import overhead
from codegemm.registry import registered


def test_every_kind_of_call_is_measured():
    pytest.importorskip("torch")
    found = overhead.measure(2)
    assert len({str(each) for each in found}) == len(found) == 7 * len(overhead.OPERANDS)
    assert {each.call for each in found} == set(overhead.CALLS)
    assert all(1e-7 < seconds < 1e-2 for each in found for seconds in each.seconds)
    assert all(len(each.seconds) == len(each.behind) == 2 for each in found)
    assert "empty" not in {kernel.name for kernel in registered("cpu")}


def test_medians_meet_targets_or_miss_them():
    seconds = (5e-6, 20e-6, 6e-6)
    given = [
        overhead.Overhead("plan(x)", "numpy", "float32", True, seconds, (1.0,), allowed) for allowed in (6e-6, 5e-6)
    ]
    met, missed = overhead.outcomes(given)
    assert met.statement == "plan(x), biased, numpy float32: at most 6.0 us"
    assert (met.found, met.is_met) == (pytest.approx(1), True)
    assert missed.is_met is False
