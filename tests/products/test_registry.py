"""Which kernels there are, which a product gets, and how a third party's joins and competes."""

import importlib.metadata
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from emulator import emulate
from emulator.gpu import emulated
from support.kernels import Twice, joined

import codegemm
from codegemm import Cost, KernelError, Product, choice, registry
from codegemm.devices import CPU, Device


@pytest.fixture
def twice():
    with joined(Twice()) as [kernel]:
        yield kernel


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
    with pytest.raises(TypeError, match="lacks name, engine, refuses"):
        codegemm.register_kernel(object())
    alike = SimpleNamespace(**{name: None for name in ("name", "engine", *dir(Twice)) if not name.startswith("_")})
    with pytest.raises(TypeError, match=r"is not a codegemm\.Kernel; subclass codegemm\.Kernel"):
        codegemm.register_kernel(alike)
    with pytest.raises(TypeError, match="register an instance"):
        codegemm.register_kernel(Twice)
    for name in ("auto", "a:b", "", None):
        kernel = Twice()
        kernel.name = name
        with pytest.raises(ValueError, match=r"must be text without a colon, and not 'auto'"):
            codegemm.register_kernel(kernel)
    for weights in ({}, codegemm.CodebookSpec, "CodebookWeight"):
        kernel = Twice()
        kernel.weights = weights
        with pytest.raises(TypeError, match="must be a class of weights"):
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
    kernel.estimate = lambda product, device: -1.0
    with joined(kernel):
        assert codegemm.plan(weight).kernel is kernel
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
    monkeypatch.setattr(registry, "_kernels", {})
    monkeypatch.setattr(registry, "_loaded", False)
    with pytest.warns(UserWarning, match="kernel 'bad' of 'other:bad' was left out: no module"):
        names = {kernel.name for kernel in registry.registered("cpu")}
    assert {"twice", "psumbook"} <= names


WANTED = r"`refuses\(product, device\)` returns None where a product can be, else the reason as text"


class Answers(Twice):
    """`refuses` returns what it is made with, for n rows and more."""

    name = "answers"

    def __init__(self, answer, n=1):
        self._answer, self._n = answer, n

    def refuses(self, product, device):
        return self._answer if product.n >= self._n else None


class Supporting(Twice):
    """What a kernel said before there was `refuses`."""

    def supports(self, spec, n, dtype, device):
        return None


def test_a_kernel_that_says_what_it_supports_is_told_what_to_write():
    with pytest.raises(TypeError, match=f"'twice' defines `supports`: write `refuses` in its place; {WANTED}"):
        codegemm.register_kernel(Supporting())
    assert "twice" not in {kernel.name for kernel in registry.registered("cpu")}


@pytest.mark.parametrize("engine", ["cpu", "cuda"])
@pytest.mark.parametrize("answer", [True, False])
def test_refusing_is_answered_by_a_reason(answer, engine):
    """True and False read either way; a kernel for one kind of weights is tried with that."""
    for weights in (codegemm.Weight, codegemm.CodebookWeight, codegemm.E8PWeight):
        kernel = Answers(answer)
        kernel.engine, kernel.weights = engine, weights
        with pytest.raises(TypeError, match=f"'answers': `refuses` returned {answer}; {WANTED}"):
            codegemm.register_kernel(kernel)
    assert "answers" not in {kernel.name for kernel in registry.registered()}


@pytest.mark.parametrize("answer", [True, False])
def test_an_answer_that_comes_later_is_met_by_the_product(answer, make_weight):
    weight = make_weight(32, 64, "m1v4")
    kernel = Answers(answer, 3)
    kernel.automatic = True
    with joined(kernel):
        codegemm.matmul(np.ones((2, 64), np.float32), weight.T, kernel="answers")
        for name in ("answers", "auto"):
            with pytest.raises(TypeError, match=f"'answers': `refuses` returned {answer}; {WANTED}"):
                codegemm.matmul(np.ones((3, 64), np.float32), weight.T, kernel=name)


def test_a_kernel_that_fails_for_a_made_up_product_is_registered():
    """It may look for what is not there yet."""

    class Failing(Twice):
        def refuses(self, product, device):
            raise RuntimeError("not now")

    codegemm.register_kernel(Failing())
    codegemm.unregister_kernel("cpu:twice")


class Bytes(Twice):
    """Automatic; it says what it moves and nothing else, like most third parties' kernels."""

    name = "bytes"
    automatic = True

    def __init__(self, bytes_read, engine="cpu"):
        self.bytes_read, self.engine = bytes_read, engine

    def cost(self, product, device):
        return Cost(self.bytes_read, product.y_bytes)


def chosen_with(kernel, weight, dtype):
    """What `auto` takes for one row of x where there is a third party's kernel."""
    with joined(kernel):
        return codegemm.plan(weight, 1, dtype).kernel


def test_a_third_partys_bytes_compete_on_the_processor(make_weight):
    """Estimates are seconds: 8 MiB of float64 take longer than the package's tables, one bit a weight does not."""
    weight = make_weight(1024, 1024, "m1v4g128")
    own = codegemm.plan(weight, 1).kernel
    product = Product.of(weight.spec, 1, np.float32)
    many, few = Bytes(8 << 20), Bytes(1 << 17)
    assert many.estimate(product, CPU) > own.estimate(product, CPU) > few.estimate(product, CPU)
    assert chosen_with(many, weight, np.float32) is own
    assert chosen_with(few, weight, np.float32) is few


def test_a_third_partys_bytes_compete_on_a_gpu(make_weight):
    """Of an architecture for which nothing was measured."""
    with emulated(replace(emulate.SMALL_GPU, arch=80)):
        weight = make_weight(256, 512, "m1v4g128").to("cuda")
        own = codegemm.plan(weight, 1, np.float16).kernel
        product, device = Product.of(weight.spec, 1, np.float16), Device("cuda:0")
        many, few = Bytes(256 << 20, "cuda"), Bytes(1 << 10, "cuda")
        assert many.estimate(product, device) > own.estimate(product, device) > few.estimate(product, device)
        assert chosen_with(many, weight, np.float16) is own
        assert chosen_with(few, weight, np.float16) is few


def test_a_precision_is_no_part_of_a_name(make_weight):
    weight = make_weight(32, 64, "m1v4")
    x, product = np.ones((1, 64), np.float32), Product.of(weight.spec, 1, np.float32)
    calls = (
        lambda **named: codegemm.matmul(x, weight.T, **named),
        lambda **named: codegemm.matmul(weight, x.T, **named),
        lambda **named: codegemm.linear(x, weight, **named),
        lambda **named: codegemm.plan(weight, 1, **named),
        lambda kernel="auto", **named: choice.select(product, CPU, kernel, **named),
        lambda **named: codegemm.warmup([(32, 64)], [1], "m1v4", device="cpu", **named),
    )
    for call in calls:
        for name in ("auto:fast", "auto:full", "cpu:auto"):
            with pytest.raises(KernelError, match=f"kernel '{name}' is unknown; known: "):
                call(kernel=name)
        with pytest.raises(ValueError, match="precision='quick': must be one of full, fast"):
            call(precision="quick")
        call(precision="fast")
