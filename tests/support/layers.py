"""What tests of torch's layers have in common."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from codegemm.torch import CodebookLinear  # noqa: E402

# At 320 x 960: of all but the last the kernel holds codes in an order of its own.
CONFIGS = ("m1v4g32", "q2g32", "e8p", "m2v4b5g16+ordered+rotated16+terms2", "qtip", "m1v8b11g-1")
LIMITS = {torch.float64: 2e-4, torch.float32: 2e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}


_latest = [None, None]  # a weight and what it is dense


def dense_of(weight):
    """float64 [M, K], computed once for the same weight asked for again."""
    if _latest[0] is not weight:
        _latest[:] = weight, torch.from_numpy(weight.dequantize(np.float64))
    return _latest[1]


def let_go(layer):
    """Names of the tensors that a layer holds no more."""
    return [name for name, tensor in layer.named_parameters() if not tensor.numel()]


def check(y, truth, dtype=torch.float32, times=1):
    """A product in `dtype` against the float64 definition; times: how much further off several may be together."""
    assert y.dtype == dtype
    assert y.shape == truth.shape
    assert torch.linalg.norm(y.detach().double() - truth) <= times * LIMITS[dtype] * torch.linalg.norm(truth)


def canonical(weight, bias=None):
    """The tensors that a file has of it."""
    tensors = {name: torch.from_numpy(array.copy()) for name, array in weight.stored().tensors.items()}
    return tensors if bias is None else {**tensors, "bias": bias.detach().clone()}


def check_state(state, expected):
    """Two state_dicts, bit for bit."""
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def reread(value, **options):
    """What torch reads of what it wrote."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)


def layer_of(weight, bias=True, **options):
    """With a random bias in float32."""
    return CodebookLinear(weight, torch.randn(weight.shape[0]) if bias else None, **options)


def at_once(calls):
    """What each returns, begun at the same moment in threads of their own."""
    barrier = threading.Barrier(len(calls))

    def run(call):
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))
