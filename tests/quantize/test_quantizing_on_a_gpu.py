"""The quantiser's arrays stay where the library that computes has them: a stand-in for a GPU lets none be NumPy's."""

import threading

import numpy as np
import pytest
from support.backends import needs_torch

from codegemm.formats.format import parse
from codegemm.quantize import additive, calibrated
from codegemm.quantize.arithmetic import Arithmetic, Cuda, Torch
from codegemm.quantize.progress import Progress
from codegemm.quantize.stopping import Stop

pytestmark = needs_torch


@pytest.fixture
def gpu():
    """Cuda's arithmetic on tensors that NumPy can't read and that don't mix with its arrays."""
    import torch

    class Held(torch.Tensor):
        def numpy(self, *args, **named):
            raise TypeError("on the device")

        def __array__(self, *args, **named):
            raise TypeError("on the device")

    class Device(Cuda):
        def __init__(self):
            Torch.__init__(self)

        def put(self, array):
            return torch.from_numpy(np.array(array)).as_subclass(Held)

        def get(self, array):
            assert isinstance(array, Held)
            return array.as_subclass(torch.Tensor).clone().numpy()

    return Device()


def quantized(matrix, config, H, ops):
    stop, bar = Stop(), Progress("", False)
    weight = additive.quantize(matrix, parse(config), 3, ops, stop, bar)
    return calibrated.refine(matrix, weight, H, ops, stop, bar)


@pytest.mark.parametrize("config", ["m1v4b6g32", "m2v8b5", "m3v4b3g64"])
def test_nothing_leaves_the_device_unasked(config, gpu, rng):
    """And the error is that of NumPy: sums are in another order, so that codes may differ here and there."""
    K = 128
    matrix = rng.standard_normal((80, K), np.float32)
    x = rng.standard_normal((500, K)) @ (np.eye(K) + rng.standard_normal((K, K)) / np.sqrt(K))
    errors = [
        np.linalg.norm(x @ (matrix - quantized(matrix, config, x.T @ x, ops).dequantize(np.float32)).T)
        for ops in (Arithmetic(), gpu)
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.03)


def test_matrices_of_a_stage_are_in_work_together(monkeypatch):
    """On a GPU; on a CPU one after the other."""
    import torch

    from codegemm.hf.blockwise.run import together

    devices, barrier = [], threading.Barrier(3)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)

    def work(name):
        barrier.wait(timeout=60)
        return name.upper()

    assert together(work, ["q", "k", "v"], torch.device("cuda", 1)) == ["Q", "K", "V"]
    assert set(devices) == {torch.device("cuda", 1)}
    assert len(devices) == 3
    own = threading.get_ident()
    assert together(lambda name: threading.get_ident(), ["q", "k"], torch.device("cpu")) == [own, own]
