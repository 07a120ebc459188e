"""Quantising that ends early: by a time limit, by Ctrl-C."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.gaussian import of_normal, relative_mse

import codegemm
from codegemm.quantize import additive


def test_no_time_is_enough_for_a_whole_weight(gaussian):
    begin = time.process_time()  # others may be busy
    weight = codegemm.quantize(gaussian, "m2v8g64", time_limit=0)
    assert time.process_time() - begin < 5
    best = relative_mse(gaussian, codegemm.quantize(gaussian, "m2v8g64"))
    assert 1.05 * best < relative_mse(gaussian, weight) < 0.14


@pytest.fixture
def listening():
    """Ctrl-C raises KeyboardInterrupt, also where what started the tests had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(monkeypatch, name, *numbers):
    """Ctrl-C within the calls of those numbers of one of additive's functions; gives the list of its calls."""
    calls, function = [], getattr(additive, name)

    def interrupted(*arguments):
        calls.append(name)
        if len(calls) in numbers:
            signal.raise_signal(signal.SIGINT)
        return function(*arguments)

    monkeypatch.setattr(additive, name, interrupted)
    return calls


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize(("name", "call"), [("solve", 2), ("_encode_rows", 1)])
def test_an_interrupt_keeps_the_best_so_far_where_asked(name, call, gaussian, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    full = relative_mse(gaussian, of_normal("m2v8b6"))
    calls = interrupt_at(monkeypatch, name, call)
    weight = codegemm.quantize(gaussian, "m2v8b6", on_interrupt="return")
    assert full < relative_mse(gaussian, weight) < 1.25 * full
    assert len(calls) < 8
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("on_interrupt", ["raise", "return"])
def test_an_interrupt_ends_it_otherwise(on_interrupt, gaussian, monkeypatch):
    """At once, or the second one."""
    handler = signal.getsignal(signal.SIGINT)
    calls = interrupt_at(monkeypatch, "sums", 2, 3)
    with pytest.raises(KeyboardInterrupt):
        codegemm.quantize(gaussian, "m2v8b6", on_interrupt=on_interrupt)
    assert len(calls) == (2 if on_interrupt == "raise" else 3)
    assert signal.getsignal(signal.SIGINT) is handler


def test_other_threads_cannot_listen_for_interrupts(gaussian):
    part = gaussian[:16, :64]
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(codegemm.quantize, part, "m1v4b4", on_interrupt="return").result()
    assert found == codegemm.quantize(part, "m1v4b4")
