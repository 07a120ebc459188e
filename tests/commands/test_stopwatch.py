"""How products are timed on a GPU: captured once, replayed with weights out of cache."""

import contextlib

import numpy as np
import pytest
from emulator.gpu import Stream, captures, submit

from codegemm import Cost, Kernel
from codegemm.devices import FIRST_GPU
from codegemm.engines.cuda.timing import Graph
from codegemm.measuring import stopwatch

HALF = np.dtype(np.float16)


class Counted(Kernel):
    """Right, and counts the products that the GPU did; its copies are told apart by their number."""

    name = "counted"
    engine = "cuda"
    automatic = True
    copies = 0

    def __init__(self):
        self.done = []

    def prepare(self, weight, device):
        return Copy(weight.dequantize(np.float32))

    def run(self, prepared, x, out, workspace, stream):
        def multiply():
            self.done.append((prepared.number, out.dtype))
            out[...] = x.get().astype(np.float32) @ prepared.dense.T

        submit(multiply, Stream.current.ptr)

    def cost(self, product, device):
        return Cost(400, 0)


class Copy:
    def __init__(self, dense, number=0):
        self.dense, self.number = dense, number

    def __deepcopy__(self, memo):
        Counted.copies += 1
        return Copy(self.dense, Counted.copies)


class Waiting(Counted):
    """A graph can't hold it."""

    name = "waiting"

    def run(self, prepared, x, out, workspace, stream):
        if Stream.current.ptr in captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        super().run(prepared, x, out, workspace, stream)


def test_a_graph_does_its_calls_at_every_replay(emulated_gpu):
    done = []
    calls = [lambda name=name: submit(lambda: done.append(name), Stream.current.ptr) for name in "abc"]
    graph = Graph(calls, FIRST_GPU)
    assert done == ["a"]
    assert graph.time() > 0
    graph.time()
    assert "".join(done) == "a" + 2 * "abc"


@pytest.mark.parametrize("calls", [3, 13])
@pytest.mark.parametrize(("kind", "how"), [(Counted, "graph"), (Waiting, "calls")])
def test_products_rotate_through_copies(kind, how, calls, emulated_gpu, make_weight, rng, monkeypatch):
    """Four times as many bytes as the cache of 1 KiB; also where they can't be captured."""
    monkeypatch.setattr(stopwatch, "_GRAPH_CALLS", calls)
    monkeypatch.setattr(Counted, "copies", 0)
    kernel, weight, warm = kind(), make_weight(8, 16, "m1v4"), []
    monkeypatch.setattr(stopwatch.timing, "warm_up", lambda device: warm.append((device, len(kernel.done))))
    candidate = stopwatch.Candidate(kernel, weight.to("cuda"), [2], HALF)
    x = rng.standard_normal((2, 16)).astype(HALF)
    warned = pytest.warns(UserWarning, match="waiting is timed call by call: .* not permitted when stream is captur")
    with contextlib.nullcontext() if how == "graph" else warned:
        y, timing = candidate.measure(x, 0)
    assert np.allclose(y, x.astype(np.float64) @ weight.dequantize(np.float64).T, atol=1e-4)
    assert len(timing.seconds) == stopwatch._MIN_CALLS
    assert 0 < min(timing.seconds) <= timing.quartiles[0] <= timing.median <= timing.quartiles[1]
    assert timing.how == how
    assert warm == [("cuda:0", 0)]  # before anything is timed
    copies = -(-4 * 1024 // (400 - 2 * 16))
    rounds = -(-calls // copies)
    # The product that is checked, in float32, comes last and apart.
    *done, (checked, dtype) = kernel.done
    assert (checked, dtype) == (0, np.float32)
    assert {dtype for _, dtype in done} == {HALF}
    if how == "graph":  # whole rounds only: no copy comes again before all others
        replays = len(timing.seconds) + 1
        assert [number for number, _ in done] == [0, *range(copies)] + [*range(copies)] * (rounds * replays - 1)
    else:
        assert {number for number, _ in done} == set(range(min(copies, len(timing.seconds) + 1)))
