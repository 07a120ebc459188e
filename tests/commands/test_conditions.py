"""What times depend on beside the kernel."""

import threading
import time

import numpy as np
import pytest

from codegemm.measuring import conditions


@pytest.fixture
def spin():
    """Starts a thread that works for some seconds, as those of a BLAS do after its last call."""
    x, workers = np.ones(1 << 14), []

    def work(seconds):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            np.sqrt(x, out=x)  # without Python's lock

    def start(seconds):
        workers.append(threading.Thread(target=work, args=(seconds,)))
        workers[-1].start()
        return workers[-1]

    yield start
    for each in workers:
        each.join()


def test_threads_that_spin_are_waited_for(spin, monkeypatch):
    monkeypatch.setattr(conditions, "_LOOK", 0.05)  # others may keep a thread from its processor for shorter ones
    worker = spin(0.2)
    conditions.settle()
    assert not worker.is_alive()


def test_those_that_never_rest_are_not(spin):
    worker = spin(1)
    conditions.settle()
    assert worker.is_alive()
