"""Which kernels there are, which a product gets, and how a third party's joins and competes."""

import importlib.metadata
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from emulator import emulate
from emulator.gpu import emulated
from support.kernels import Twice, joined

import codegemm
from codegemm import Cost, KernelError, Product, choice, registry
from codegemm.devices import CPU


def test_every_kernel_is_listed_with_the_reason_why_not(make_weight):
    infos = {f"{info.engine}:{info.name}": info for info in codegemm.kernels()}
    own = "reference psumbook psumbook_fast dequant dequant_fast dense torch_fp32 dense_bf16 dequant_dense"
    assert {*own.split(), "aqlm", "quip", "qtip", "lutgemm"} <= {
        info.name for info in infos.values() if info.engine == "cpu"
    }
    assert all(info.usable == (info.reason is None) for info in infos.values())
    weight = make_weight(32, 64, "m1v4b12")
    reasons = {info.name: info.reason for info in codegemm.kernels(weight, 1) if info.engine == "cpu"}
    assert reasons["dequant"] is None
    assert reasons["psumbook"] == "b=12: its tables hold 2^b entries a position, b up to 8"
    assert reasons["quip"] == "it multiplies E8PWeights"
    assert reasons["lutgemm"] == "m1v4b12g-1: its codebook is not that of all signs, +1 and -1, like q2g128's"
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


LARGE, SMALL = (4096, 512), (384, 384)


@pytest.mark.parametrize(
    ("shape", "config", "n", "name"),
    [(LARGE, "m1v4g128", 1, "psumbook"), (LARGE, "m2v8g128", 4, "psumbook"), (SMALL, "m1v4g128", 16, "dequant"),
     (LARGE, "m8v4b8g-1", 300, "dequant"), (LARGE, "m1v8b16", 1, "dequant"), (LARGE, "e8p", 1, "quip"),
     (LARGE, "e8p", 300, "quip"), (LARGE, "qtip", 1, "qtip"), (LARGE, "qtip4", 300, "qtip"),
     (SMALL, "m2v8g128", 1, "psumbook"), (SMALL, "m2v8g128", 8, "dequant")],
)  # fmt: skip
def test_auto(shape, config, n, name, make_weight):
    """Tables are not worth their building for few rows of W and several of x."""
    assert codegemm.plan(make_weight(*shape, config), n).kernel.name == name


def test_a_third_partys_kernel(make_weight, rng):
    weight = make_weight(32, 64, "m1v4")
    x = rng.standard_normal((3, 64)).astype(np.float32)
    with joined(Twice()):
        y = codegemm.matmul(x, weight.T, kernel="twice")
        assert np.allclose(y, x @ weight.dequantize().T, atol=1e-4)
        assert codegemm.plan(weight).kernel.name != "twice"  # not automatic unless it says so
        with pytest.raises(KernelError, match="'twice' can't run here: n=5: it takes up to 4 rows"):
            codegemm.matmul(np.ones((5, 64), np.float32), weight.T, kernel="twice")
        with pytest.raises(ValueError, match="cpu:twice is registered already"):
            codegemm.register_kernel(Twice())
        codegemm.register_kernel(Twice(), replace=True)


def test_registration_is_checked():
    with pytest.raises(TypeError, match="lacks name, engine, refuses"):
        codegemm.register_kernel(object())
    alike = SimpleNamespace(**{name: None for name in ("name", "engine", *dir(Twice)) if not name.startswith("_")})
    with pytest.raises(TypeError, match=r"is not a codegemm\.Kernel; subclass codegemm\.Kernel"):
        codegemm.register_kernel(alike)
    with pytest.raises(TypeError, match="must be an instance"):
        codegemm.register_kernel(Twice)
    for name in ("auto", "a:b", None):
        with pytest.raises(ValueError, match=r"must be text without a colon, and not 'auto'"):
            codegemm.register_kernel(Twice(name=name))
    for weights in ({}, codegemm.CodebookSpec, "CodebookWeight"):
        with pytest.raises(TypeError, match="must be a class of weights"):
            codegemm.register_kernel(Twice(weights=weights))
    with pytest.raises(ValueError, match="engine 'tpu', must be cpu or cuda"):
        codegemm.register_kernel(Twice(engine="tpu"))
    with pytest.raises(KeyError):
        codegemm.unregister_kernel("cpu:nothing")


def test_a_kernel_that_forgot_its_name_or_engine_is_told_what_to_write():
    with pytest.raises(ValueError, match=r"kernel <class '.*\.Twice'>: has no name: set `name = 'twice'`"):
        codegemm.register_kernel(Twice(name=""))
    with pytest.raises(ValueError, match=r"kernel 'mine': has no engine: set `engine = 'cpu'` or 'cuda'"):
        codegemm.register_kernel(Twice(name="mine", engine=""))


def test_a_new_kernel_is_seen_by_products_decided_before(make_weight):
    weight = make_weight(32, 64, "m1v4")
    before = codegemm.plan(weight).kernel
    with joined(Twice(automatic=True, estimate=lambda product, device: -1.0)) as [kernel]:
        assert codegemm.plan(weight).kernel is kernel
    assert codegemm.plan(weight).kernel is before


def test_entry_points_join_and_broken_ones_are_left_out(monkeypatch):
    fail = Mock(side_effect=ImportError("no module"))
    right = SimpleNamespace(name="twice", value="other:Twice", load=lambda: Twice)
    entries = [right, SimpleNamespace(name="bad", value="other:bad", load=fail)]
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: entries if group == "codegemm.kernels" else []
    )
    for name, value in {"_values": {}, "_seen": set(), "_has_own": False, "_loaded": False}.items():
        monkeypatch.setattr(registry._kernels, name, value)
    with pytest.warns(UserWarning, match="kernel 'bad' of 'other:bad' was left out: no module"):
        names = {kernel.name for kernel in registry.registered("cpu")}
    assert {"twice", "psumbook"} <= names


WANTED = r"`refuses\(product, device\)` returns None where a product can be, else the reason as text"


def test_a_kernel_that_says_what_it_supports_is_told_what_to_write():
    """As it was before there was `refuses`."""
    with pytest.raises(TypeError, match=f"'twice' defines `supports`: write `refuses` in its place; {WANTED}"):
        codegemm.register_kernel(Twice(supports=lambda spec, n, dtype, device: None))
    assert "twice" not in {kernel.name for kernel in registry.registered("cpu")}


@pytest.mark.parametrize("engine", ["cpu", "cuda"])
@pytest.mark.parametrize("answer", [True, False])
def test_refusing_is_answered_by_a_reason(answer, engine):
    """True and False read either way; a kernel for one kind of weights is tried with that."""
    for weights in (codegemm.Weight, codegemm.CodebookWeight, codegemm.E8PWeight):
        kernel = Twice(engine=engine, weights=weights, refuses=lambda product, device: answer)
        with pytest.raises(TypeError, match=f"'twice': `refuses` returned {answer}; {WANTED}"):
            codegemm.register_kernel(kernel)
    assert "twice" not in {kernel.name for kernel in registry.registered()}


@pytest.mark.parametrize("answer", [True, False])
def test_an_answer_that_comes_later_is_met_by_the_product(answer, make_weight):
    weight = make_weight(32, 64, "m1v4")
    with joined(Twice(automatic=True, refuses=lambda product, device: answer if product.n >= 3 else None)):
        codegemm.matmul(np.ones((2, 64), np.float32), weight.T, kernel="twice")
        for name in ("twice", "auto"):
            with pytest.raises(TypeError, match=f"'twice': `refuses` returned {answer}; {WANTED}"):
                codegemm.matmul(np.ones((3, 64), np.float32), weight.T, kernel=name)


def test_a_kernel_that_fails_for_a_made_up_product_is_registered():
    """It may look for what is not there yet."""
    with joined(Twice(refuses=Mock(side_effect=RuntimeError("not now")))):
        pass


def check_competition(weight, dtype, many, few):
    """`auto` goes by what a third party's automatic kernel says that it moves, which is all that most say."""
    own = codegemm.plan(weight, 1, dtype).kernel
    product, device = Product.of(weight.spec, 1, dtype), weight.device
    slow, fast = (
        Twice(engine=device.engine, automatic=True, cost=lambda product, device, size=size: Cost(size, product.y_bytes))
        for size in (many, few)
    )
    assert slow.estimate(product, device) > own.estimate(product, device) > fast.estimate(product, device)
    for kernel, chosen in ((slow, own), (fast, fast)):
        with joined(kernel):
            assert codegemm.plan(weight, 1, dtype).kernel is chosen


def test_a_third_partys_bytes_compete_on_the_processor(make_weight):
    """Estimates are seconds: 8 MiB of float64 take longer than the package's tables, one bit a weight does not."""
    check_competition(make_weight(1024, 1024, "m1v4g128"), np.float32, 8 << 20, 1 << 17)


def test_a_third_partys_bytes_compete_on_a_gpu(make_weight):
    """Of an architecture for which nothing was measured."""
    with emulated(replace(emulate.SMALL_GPU, arch=80)):
        check_competition(make_weight(256, 512, "m1v4g128").to("cuda"), np.float16, 256 << 20, 1 << 10)


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
