"""The CUDA engine where there is no GPU, and its logic with a stand-in for CuPy."""

import contextlib
import sys
import types

import numpy as np
import pytest

import codegemm
from codegemm.engines import cuda
from codegemm.engines.cuda import device


@pytest.fixture(autouse=True)
def forget():
    device.unavailable.cache_clear()
    yield
    device.unavailable.cache_clear()


@pytest.mark.parametrize(("text", "parsed"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:3", "cuda:3")])
def test_device_names(text, parsed):
    assert cuda.parse_device(text) == parsed


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "CUDA", "", 0])
def test_bad_device_names(text, make_weight):
    with pytest.raises(ValueError, match="must be 'cpu', 'cuda' or 'cuda:<number>'"):
        make_weight(16, 64, "m1v4").to(text)


def without_cupy(monkeypatch):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)


def test_without_cupy_there_is_a_sentence(monkeypatch, make_weight):
    without_cupy(monkeypatch)
    reason = r"CuPy is not installed \(pip install 'codegemm\[cuda12\]', or cuda13\)"
    with pytest.raises(RuntimeError, match=f"cuda:0: {reason}"):
        make_weight(16, 64, "m1v4").to("cuda")
    [dense] = [i for i in codegemm.kernels() if i.engine == "cuda" and i.name == "dense"]
    assert not dense.usable
    assert dense.reason.startswith("CuPy is not installed")


class FakeDevice(contextlib.nullcontext):
    """A GPU's context."""

    def __init__(self, number=0):
        super().__init__()
        self.id = number


class FakeArray:
    """An array that NumPy does not know, on host memory."""

    device = FakeDevice()

    def __init__(self, host):
        self.host = host

    @property
    def __cuda_array_interface__(self):
        return self.host.__array_interface__

    def __getattr__(self, name):
        value = getattr(self.host, name)
        if callable(value):
            return lambda *arguments, **named: fake(value(*map(host, arguments), **named))
        return fake(value)

    def __getitem__(self, key):
        return fake(self.host[key])

    def __setitem__(self, key, value):
        self.host[key] = host(value)

    def __matmul__(self, other):
        return fake(self.host @ host(other))

    def __abs__(self):
        return fake(abs(self.host))

    def __len__(self):
        return len(self.host)

    def get(self):
        return self.host.copy()


def fake(value):
    return FakeArray(value) if isinstance(value, np.ndarray) else value


def host(value):
    return value.host if isinstance(value, FakeArray) else value


@pytest.fixture
def fake_cupy(monkeypatch):
    """One GPU whose memory is the host's, so that every decision on the way can be tested."""
    cupy = types.ModuleType("cupy")
    cupy.ndarray = FakeArray
    cupy.asarray = lambda array: FakeArray(np.array(host(array)))
    cupy.empty = lambda shape, dtype: FakeArray(np.empty(shape, dtype))
    cupy.ascontiguousarray = lambda array: FakeArray(np.ascontiguousarray(array.host))
    cupy.concatenate = lambda arrays: FakeArray(np.concatenate([array.host for array in arrays]))
    cupy.cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(getDeviceCount=lambda: 1),
        Device=FakeDevice,
        get_current_stream=contextlib.nullcontext,
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: object())
    return cupy


def test_a_weight_moves_there_and_back(fake_cupy, make_weight):
    weight = make_weight(16, 64, "m1v4g16")
    moved = weight.to("cuda")
    assert moved.device == "cuda:0"
    assert isinstance(moved.codes, FakeArray)
    assert moved.to("cuda:0") is moved
    assert moved == weight
    assert moved.to("cpu").device == "cpu"
    assert np.array_equal(moved.dequantize(), weight.dequantize())
    with pytest.raises(RuntimeError, match="cuda:1: there are 1 GPUs"):
        weight.to("cuda:1")


def test_the_engine_follows_the_weight(fake_cupy, make_weight, rng):
    weight = make_weight(16, 64, "m1v4g16")
    moved = weight.to("cuda")
    x = rng.standard_normal((3, 64)).astype(np.float16)
    expected = x.astype(np.float64) @ weight.dequantize(np.float64).T
    there = codegemm.matmul(fake_cupy.asarray(x), moved.T, kernel="dense")
    assert isinstance(there, FakeArray)
    back = codegemm.matmul(x, moved.T, kernel="dense")
    assert type(back) is np.ndarray
    out = np.full((3, 16), np.nan, np.float16)
    assert codegemm.matmul(x, moved.T, kernel="dense", out=out) is out
    for y in (there, back, out):
        assert np.allclose(np.asarray(host(y), np.float64), expected, atol=0.05)
    with pytest.raises(
        TypeError, match=r"x is on cuda:0 and the weight is on cpu: move one of them, like w.to\('cuda:0'\)"
    ):
        codegemm.matmul(fake_cupy.asarray(x), weight.T)
    with pytest.raises(TypeError, match="out is on cuda:0 and the weight is on cpu"):
        codegemm.matmul(x, weight.T, out=there)
    with pytest.raises(codegemm.KernelError, match=r"no kernel is chosen automatically.*dense"):
        codegemm.matmul(x, moved.T)
    with pytest.raises(ValueError, match="all weights must be on one device"):
        codegemm.concat([weight, moved])
