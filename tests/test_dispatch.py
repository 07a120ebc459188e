"""Which kernels there are, which a product gets, and how a third party's joins."""

import importlib.metadata
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

import codegemm
from codegemm import Cost, Kernel, KernelError, dispatch


class Twice(Kernel):
    """Somebody else's kernel: right, but slow."""

    name = "twice"
    engine = "cpu"

    def supports(self, spec, n, dtype, device):
        return None if n <= 4 else f"n={n}: it takes up to 4 rows"

    def prepare(self, weight, device):
        return weight.dequantize(np.float64) / 2

    def run(self, prepared, x, out, workspace, stream):
        out[...] = 2 * (x @ prepared.T)

    def cost(self, spec, n, dtype):
        return Cost(8 * spec.out_features * spec.in_features, 0, 0, 0)


@pytest.fixture
def twice():
    kernel = codegemm.register_kernel(Twice())
    yield kernel
    codegemm.unregister_kernel("cpu:twice")


def test_every_kernel_is_listed_with_the_reason_why_not(make_weight):
    infos = {f"{info.engine}:{info.name}": info for info in codegemm.kernels()}
    expected = {
        "reference",
        "psumbook",
        "psumbook_fast",
        "dequant",
        "dense",
        "dense_bf16",
        "dequant_dense",
        "aqlm",
        "quip",
    }
    assert expected <= {info.name for info in infos.values() if info.engine == "cpu"}
    assert all(info.usable == (info.reason is None) for info in infos.values())
    weight = make_weight(32, 64, "m1v4b12")
    reasons = {info.name: info.reason for info in codegemm.kernels(weight, 1) if info.engine == "cpu"}
    assert reasons["dequant"] is None
    assert reasons["psumbook"] == "b=12: its tables hold 2^b entries a position, b up to 8"
    assert reasons["quip"] == "it multiplies E8PWeights"
    cuda = [info for info in codegemm.kernels(weight, 1) if info.engine == "cuda"]
    assert cuda
    assert not any(info.usable for info in cuda)
    assert str(infos["cpu:psumbook"]) == "cpu:psumbook  usable"
    with pytest.raises(ValueError, match="n=0"):
        codegemm.kernels(weight, 0)


def test_engines_can_be_named(make_weight):
    weight = make_weight(32, 64, "m1v4")
    x = np.ones(64, np.float32)
    assert np.array_equal(
        codegemm.matmul(x, weight.T, kernel="cpu:psumbook"), codegemm.matmul(x, weight.T, kernel="psumbook")
    )
    with pytest.raises(KernelError, match=r"'cuda:dense' runs on cuda and the weight is on cpu: move it"):
        codegemm.matmul(x, weight.T, kernel="cuda:dense")
    with pytest.raises(KernelError, match="'gpu:dense' is unknown"):
        codegemm.matmul(x, weight.T, kernel="gpu:dense")


@pytest.mark.parametrize(
    ("config", "n", "name"),
    [("m1v4g128", 1, "psumbook"), ("m2v8g128", 8, "psumbook"), ("m1v4g128", 17, "psumbook"),
     ("m8v4b8g-1", 300, "dequant"), ("m1v8b16", 1, "dequant"), ("e8p", 1, "quip"), ("e8p", 300, "quip")],
)  # fmt: skip
def test_auto(config, n, name, make_weight):
    weight = make_weight(4096, 512, config)
    assert codegemm.plan(weight, n).kernel.name == name


def test_auto_weighs_tables_against_decoding(make_weight):
    """Tables are not worth their building for few rows and several codebooks."""
    assert codegemm.plan(make_weight(384, 384, "m2v8g128"), 2).kernel.name == "dequant"
    assert codegemm.plan(make_weight(384, 384, "m2v8g128"), 1).kernel.name == "psumbook"


def test_a_third_partys_kernel(twice, make_weight, rng):
    weight = make_weight(32, 64, "m1v4")
    x = rng.standard_normal((3, 64)).astype(np.float32)
    y = codegemm.matmul(x, weight.T, kernel="twice")
    assert np.allclose(y, x @ weight.dequantize().T, atol=1e-4)
    assert codegemm.plan(weight).kernel.name != "twice"  # not automatic unless it says so
    with pytest.raises(KernelError, match="'twice' can't run here: n=5: it takes up to 4 rows"):
        codegemm.matmul(np.ones((5, 64), np.float32), weight.T, kernel="twice")
    with pytest.raises(ValueError, match="cpu:twice is registered already"):
        codegemm.register_kernel(Twice())
    codegemm.register_kernel(Twice(), replace=True)
    twice.automatic = True


def test_registration_is_checked():
    with pytest.raises(TypeError, match="lacks name, engine, supports"):
        codegemm.register_kernel(object())
    alike = SimpleNamespace(**{name: None for name in ("name", "engine", *dir(Twice)) if not name.startswith("_")})
    with pytest.raises(TypeError, match=r"is not a codegemm\.Kernel; subclass codegemm\.Kernel"):
        codegemm.register_kernel(alike)
    with pytest.raises(TypeError, match="register an instance"):
        codegemm.register_kernel(Twice)
    for name in ("auto", "a:b", None):
        kernel = Twice()
        kernel.name = name
        with pytest.raises(ValueError, match=r"must be text without a colon, and not 'auto'"):
            codegemm.register_kernel(kernel)
    kernel = Twice()
    kernel.engine = "tpu"
    with pytest.raises(ValueError, match="engine 'tpu', must be cpu or cuda"):
        codegemm.register_kernel(kernel)
    with pytest.raises(KeyError):
        codegemm.unregister_kernel("cpu:nothing")


def test_a_new_kernel_is_seen_by_products_decided_before(make_weight):
    weight = make_weight(32, 64, "m1v4")
    before = codegemm.plan(weight).kernel
    kernel = Twice()
    kernel.automatic = True
    kernel.estimate = lambda spec, n, dtype, device: -1.0
    codegemm.register_kernel(kernel)
    try:
        assert codegemm.plan(weight).kernel is kernel
    finally:
        codegemm.unregister_kernel("cpu:twice")
    assert codegemm.plan(weight).kernel is before


@dataclass
class EntryPoint:
    """As importlib.metadata gives them."""

    name: str
    value: str
    made: object

    def load(self):
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


def test_entry_points_join_and_broken_ones_are_left_out(monkeypatch):
    entries = [EntryPoint("twice", "other:Twice", Twice), EntryPoint("bad", "other:bad", ImportError("no module"))]
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: entries if group == "codegemm.kernels" else []
    )
    monkeypatch.setattr(dispatch, "_registry", {})
    monkeypatch.setattr(dispatch, "_loaded", False)
    dispatch._select.cache_clear()
    with pytest.warns(UserWarning, match="kernel 'bad' of 'other:bad' was left out: no module"):
        names = {kernel.name for kernel in dispatch.registered("cpu")}
    assert {"twice", "psumbook"} <= names
