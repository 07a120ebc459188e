"""`CodebookLinear`: its products, its parameters whatever a kernel holds of them, and graphs that it is in."""

import copy
import io
import pickle
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
from support.layers import (
    CONFIGS,
    LIMITS,
    at_once,
    canonical,
    check,
    check_state,
    dense_of,
    layer_of,
    let_go,
    reread,
    torch,
)
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

import codegemm
from codegemm.torch import CodebookLinear

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch itself uses it
functional = torch.nn.functional
every_configuration = pytest.mark.parametrize("config", CONFIGS)
SHAPE = (320, 960)


@pytest.fixture(autouse=True)
def no_graphs():
    """Nothing compiled before."""
    torch._dynamo.reset()


def made(make_weight, config, bias=True):
    """A layer that let go of its codes, if it does, and its weight."""
    weight = make_weight(*SHAPE, config)
    layer = layer_of(weight, bias)
    layer(torch.randn(1, SHAPE[1]))
    return layer, weight


def check_layer(layer, weight, bias=None, dtype=torch.float32):
    """Its product and its state_dict are those of the weight and of its own or another bias."""
    bias = layer.bias if bias is None else bias
    x = torch.randn(2, weight.shape[1]).to(dtype)
    truth = functional.linear(x.double(), dense_of(weight), None if bias is None else bias.detach().double())
    check(layer(x), truth, dtype)
    check_state(layer.state_dict(), canonical(weight, bias))
    assert layer.to_weight() == weight


@every_configuration
@pytest.mark.parametrize("dtype", LIMITS)
def test_products(config, dtype, make_weight):
    weight = make_weight(*SHAPE, config)
    layer = layer_of(weight)
    for shape in ((960,), (3, 960), (2, 3, 960), (0, 960), (1, 960)):
        x = torch.randn(shape).to(dtype)
        truth = functional.linear(x.double(), dense_of(weight), layer.bias.detach().double())
        y = layer(x)
        check(y, truth, dtype)
        assert y.requires_grad
        with torch.no_grad():
            assert torch.equal(layer(x), y)
    wide = torch.randn(4, 2, 960).to(dtype)
    for x in (wide[:, 1], wide[:1, 0].expand(5, -1), wide.mT.contiguous().mT):
        check(layer(x), functional.linear(x.double(), dense_of(weight), layer.bias.detach().double()), dtype)


@every_configuration
def test_codes_are_held_once(config, make_weight):
    weight = make_weight(*SHAPE, config)
    layer = layer_of(weight)
    check_state(layer.state_dict(), canonical(weight, layer.bias))
    assert not let_go(layer)
    x = torch.randn(2, 960)
    y = layer(x)
    assert let_go(layer) == ([] if config == "m1v8b11g-1" else [layer._names[0]])
    check_layer(layer, weight)
    assert np.array_equal(layer.dequantize(torch.float64), dense_of(weight))
    held = layer.restore().state_dict(keep_vars=True)
    assert all(held[name] is tensor for name, tensor in layer.named_parameters())
    assert not let_go(layer)
    check_state(held, canonical(weight, layer.bias))
    assert torch.equal(layer(x), y)
    assert layer.prepare(5, torch.float16) is layer
    check_layer(layer, weight)


@every_configuration
def test_prepared_before_the_first_product(config, make_weight):
    weight = make_weight(*SHAPE, config)
    for n, dtype in ((1, torch.float64), (4, torch.bfloat16)):
        layer = layer_of(weight).prepare(n, dtype)
        assert let_go(layer) == list(codegemm.compact(copy.deepcopy(weight), n, dtype).rearranged)
        check_layer(layer, weight)


def test_what_a_layer_can_not_be(make_weight):
    weight = make_weight(24, 96, "m1v4g32")
    for wrong in (torch.randn(24, 96), weight.T, None):
        with pytest.raises(TypeError, match=r"weight: \w+, must be a quantised weight"):
            CodebookLinear(wrong)
    for wrong, said in (
        (torch.zeros(23), r"torch.float32 \(23,\)"),
        (torch.zeros(1, 24), r"torch.float32 \(1, 24\)"),
        (torch.zeros(24, dtype=torch.int32), r"torch.int32 \(24,\)"),
        (np.zeros(24), "ndarray"),
    ):
        with pytest.raises(ValueError, match=rf"bias: {said}, must be a tensor of floats \(24,\)"):
            CodebookLinear(weight, wrong)
    with pytest.raises(ValueError, match="precision"):
        CodebookLinear(weight, precision="half")
    bias = torch.nn.Parameter(torch.zeros(24, dtype=torch.float64), requires_grad=False)
    assert CodebookLinear(weight, bias).bias is bias


def test_what_is_printed(make_weight):
    weight = make_weight(24, 96, "m1v4g32+rotated")
    features = "in_features=96, out_features=24"
    assert repr(layer_of(weight)) == f"CodebookLinear({features}, bias=True, config=m1v4g32+rotated)"
    fast = layer_of(weight, bias=False, precision="fast")
    assert repr(fast) == f"CodebookLinear({features}, bias=False, config=m1v4g32+rotated, precision=fast)"


def test_what_x_can_not_be(make_weight):
    """Said in the same words by a new layer and one that let go of its codes, whatever torch does."""
    layer = layer_of(make_weight(*SHAPE, "m1v4g32"))
    x = torch.randn(2, 960)
    for _ in range(2):
        for context in (torch.no_grad(), torch.enable_grad(), torch.autocast("cpu", torch.bfloat16)):
            with context:
                for wrong in (x[:, 1:], x[0, 0]):
                    with pytest.raises(ValueError, match="its last axis must be in_features=960 of the weight"):
                        layer(wrong)
                with pytest.raises(TypeError, match="x: dtype int64, must be one of"):
                    layer(x.long())
                with pytest.raises(TypeError, match="x is a torch tensor on meta:0 and the weight is on cpu"):
                    layer(x.to("meta"))
        layer(x)


def test_a_bias_elsewhere_is_named(make_weight):
    layer = CodebookLinear(make_weight(24, 96, "m1v4g32"), torch.zeros(24, device="meta"))
    with torch.no_grad(), pytest.raises(TypeError, match="bias is a torch tensor on meta:0 and the weight is on cpu"):
        layer(torch.randn(2, 96))


def test_precision(make_weight):
    layer = layer_of(make_weight(4096, 1024, "m2v8g128"), precision="fast")
    x = torch.randn(1, 1024)
    exact = functional.linear(x.double(), dense_of(layer.to_weight()), layer.bias.double())
    assert torch.linalg.norm(layer(x) - exact) <= 3e-2 * torch.linalg.norm(exact)


@every_configuration
def test_gradients(config, make_weight):
    layer, weight = made(make_weight, config)
    x = torch.randn(3, 960, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    bias = layer.bias.detach().double().requires_grad_()
    upstream = torch.randn(3, 320, requires_grad=True)
    given = torch.autograd.grad(layer(x), (x, layer.bias), upstream, create_graph=True)
    truth = torch.autograd.grad(
        functional.linear(wide, dense_of(weight), bias), (wide, bias), upstream.detach().double()
    )
    for gradient, exact in zip(given, truth):
        check(gradient, exact)
    direction = torch.randn(3, 960)
    (again,) = torch.autograd.grad(given[0], upstream, direction)
    check(again, direction.double() @ dense_of(weight).T)


def test_tensors_have_no_gradients(make_weight):
    layer, _ = made(make_weight, "m1v4g32", bias=False)
    layer.scales.requires_grad_()
    with pytest.raises(RuntimeError, match="scales: codegemm::linear has no gradient"):
        layer(torch.randn(2, 960)).sum().backward()


@every_configuration
def test_modes_of_inference(config, make_weight):
    """A layer that was made, changed or used inside is trained outside."""
    weight = make_weight(*SHAPE, config)
    x = torch.randn(2, 960)
    with torch.inference_mode():
        inside = layer_of(weight)
        y = inside(x)
        assert y.is_inference()
        moved = layer_of(weight)._apply(torch.clone)  # as to another device
        moved(x)
        moved.restore()
        assert not any(tensor.is_inference() for layer in (inside, moved) for tensor in layer.tensors())
    outside = layer_of(weight)
    with torch.inference_mode():
        outside(x)
    for layer in (inside, moved, outside):
        grown = x.clone().requires_grad_()
        torch.autograd.backward(layer(grown).sum())
        check(grown.grad, dense_of(weight).sum(0).expand(2, -1))
        check_layer(layer, weight)


def test_autocast(make_weight):
    weight = make_weight(*SHAPE, "m1v4g32")
    layer, dense = layer_of(weight), torch.nn.Linear(960, 320)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in LIMITS:
            x = torch.randn(2, 960).to(dtype).requires_grad_()
            y = layer(x)
            assert y.dtype == dense.to(dtype)(x).dtype == (dtype if dtype == torch.float64 else torch.bfloat16)
            check(y, functional.linear(x.double(), dense_of(weight), layer.bias.double()).detach(), y.dtype)
            y.sum().backward()
            assert x.grad.dtype == dtype
    with torch.autocast("cpu", torch.float16, enabled=False):
        assert layer(torch.randn(2, 960)).dtype == torch.float32


@every_configuration
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_loading(config, assign, inference, make_weight):
    layer, _ = made(make_weight, config)
    for assigned in (assign, False):
        other, weight = made(make_weight, config)
        with torch.inference_mode(inference):
            state = reread(other.state_dict(), weights_only=True)
            assert str(layer.load_state_dict(state, assign=assigned)) == "<All keys matched successfully>"
            if assigned:
                assert layer.bias.data_ptr() == state["bias"].data_ptr()
            check_layer(layer, weight, other.bias)
        with torch.set_grad_enabled(not inference):
            check_layer(layer, weight, other.bias)


@every_configuration
def test_loading_what_does_not_fit(config, make_weight):
    """Nothing is lost."""
    layer, weight = made(make_weight, config)
    good = layer.state_dict()
    for name in good:
        with pytest.raises(RuntimeError, match=rf"size mismatch for {name}"):
            layer.load_state_dict({**good, name: good[name][..., :-1]})
        check_layer(layer, weight)
        with pytest.raises(RuntimeError, match=f"Missing key.*{name}"):
            layer.load_state_dict({key: tensor for key, tensor in good.items() if key != name})
        check_layer(layer, weight)
    layer.load_state_dict(
        {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in good.items()}
    )
    check_layer(layer, weight, good["bias"].half().float())


@every_configuration
@pytest.mark.parametrize("inference", [False, True])
def test_loading_some_tensors(config, inference, make_weight):
    layer, weight = made(make_weight, config)
    expected = canonical(weight, layer.bias)
    with torch.inference_mode(inference):
        for name in ("bias", *layer._names[1:], *layer._names[:1]):
            new = canonical(make_weight(*SHAPE, config), torch.randn(320))[name]
            assert layer.load_state_dict({name: new}, strict=False).missing_keys == [n for n in expected if n != name]
            expected[name] = new
            twin = CodebookLinear(weight, torch.zeros(320))
            twin.load_state_dict(expected)
            check_layer(layer, twin.to_weight(), expected["bias"])
        layer.load_state_dict({}, strict=False)
        check_layer(layer, twin.to_weight(), expected["bias"])


def test_loading_part_of_a_model(make_weight):
    """As adapters are loaded beside it."""
    layer, weight = made(make_weight, "m1v4g32")
    model = torch.nn.ModuleDict({"base": layer, "adapter": torch.nn.Linear(960, 320)})
    model.load_state_dict({"adapter.bias": torch.zeros(320)}, strict=False)
    check_layer(layer, weight)


def test_tensors_that_make_no_weight(make_weight):
    layer, weight = made(make_weight, "m1v4g32")
    state = canonical(weight, layer.bias)
    layer.load_state_dict({**state, "scales": state["scales"] * torch.inf})
    with pytest.raises(ValueError, match="scales"):
        layer(torch.randn(1, 960))
    layer.load_state_dict(state)
    check_layer(layer, weight)


@every_configuration
def test_changes_in_place_are_seen(config, make_weight):
    layer, weight = made(make_weight, config, bias=False)
    name = "SV" if config in ("e8p", "qtip") else "scales"
    for factor, context in ((2, torch.no_grad()), (0.5, torch.inference_mode()), (4, torch.no_grad())):
        x = torch.randn(2, 960)
        before, state = layer(x), layer.state_dict()[layer._names[0]]
        with context:
            getattr(layer, name).mul_(factor)
        check(layer(x), before.double() * factor)
        assert torch.equal(layer.state_dict()[layer._names[0]], state)
    setattr(layer, name, torch.nn.Parameter(canonical(weight)[name], requires_grad=False))
    check_layer(layer, weight)


def test_changes_of_the_bias_are_seen(make_weight):
    layer, weight = made(make_weight, "m1v4g32")
    for dtype in (torch.float32, torch.float16):
        layer.bias.data = layer.bias.data.to(dtype)
        for _ in range(3):
            with torch.no_grad():
                layer.bias += 1
                check_layer(layer, weight)
    layer.bias = None
    check_layer(layer, weight)


@every_configuration
def test_conversions_keep_the_tensors(config, make_weight):
    layer, weight = made(make_weight, config)
    bias = layer.bias.detach().clone()
    for convert, dtype in (
        (torch.nn.Module.half, torch.float16),
        (lambda layer: layer.to(torch.bfloat16), torch.bfloat16),
        (torch.nn.Module.double, torch.float64),
        (torch.nn.Module.float, torch.float32),
    ):
        assert convert(layer) is layer
        bias = bias.to(dtype)
        check_layer(layer, weight, bias, dtype)
        assert list(layer.state_dict()) == [*layer._names, "bias"]
        assert not any(getattr(layer, name).requires_grad for name in layer._names)


def test_conversions_take_what_else_a_layer_has(make_weight):
    layer, weight = made(make_weight, "m1v4g32")
    layer.gain = torch.nn.Parameter(torch.ones(3))
    layer.register_buffer("seen", torch.ones(3))
    layer.child = torch.nn.Linear(3, 3)
    layer.half()
    assert {layer.gain.dtype, layer.seen.dtype, layer.child.weight.dtype, layer.bias.dtype} == {torch.float16}
    assert layer.to_weight() == weight


@every_configuration
def test_devices(config, make_weight):
    layer, weight = made(make_weight, config)
    state = layer.state_dict()
    assert layer.to("meta") is layer
    for name, tensor in layer.state_dict().items():
        assert (tensor.device.type, tensor.shape, tensor.dtype) == ("meta", state[name].shape, state[name].dtype)
    assert layer(torch.zeros(3, 960, device="meta")).shape == (3, 320)
    with torch.no_grad():
        assert layer(torch.zeros(3, 960, device="meta")).device.type == "meta"
        with pytest.raises(TypeError, match="on meta"):
            layer(torch.zeros(3, 960))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        layer.to("cpu")
    assert all(tensor.device.type == "meta" for tensor in layer.state_dict(keep_vars=True).values())
    assert list(layer.state_dict()) == list(state)
    assert layer.to_empty(device="cpu") is layer
    layer.load_state_dict(state)
    check_layer(layer, weight)
    layer.to("meta").load_state_dict(state, assign=True)
    check_layer(layer, weight)


@every_configuration
def test_copies(config, make_weight):
    layer, weight = made(make_weight, config)
    for copied in (
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
        lambda layer: reread(layer, weights_only=False),
    ):
        layer(torch.randn(1, 960))
        twin = copied(layer)
        with torch.no_grad():
            twin.bias.zero_()
            twin._parameters[twin._names[-1]].zero_()
        check_layer(layer, weight)
        twin.load_state_dict(layer.state_dict())
        check_layer(twin, weight, layer.bias)
        assert repr(twin) == repr(layer)
    averaged = torch.optim.swa_utils.AveragedModel(layer)
    check_layer(averaged.module, weight, layer.bias)


@pytest.mark.parametrize("config", CONFIGS[:-1])
def test_a_copy_of_a_tensor_alone(config, make_weight):
    """That was let go of: it is not known what was in it, and that is said."""
    layer, weight = made(make_weight, config)
    first = layer._names[0]
    for copied in (copy.deepcopy, lambda tensor: pickle.loads(pickle.dumps(tensor)), lambda tensor: tensor.detach()):
        other, _ = made(make_weight, config)
        setattr(other, first, torch.nn.Parameter(copied(getattr(layer, first)), requires_grad=False))
        for use in (lambda: other(torch.zeros(1, 960)), other.state_dict, other.to_weight, other.half):  # noqa: B023
            with pytest.raises(ValueError, match=rf"{first}: empty, .* state_dict\(\) has it, and restore\(\)"):
                use()
        for name, tensor in canonical(weight).items():
            setattr(other, name, torch.nn.Parameter(tensor, requires_grad=False))
        check_layer(other, weight)


@every_configuration
def test_tensors_that_layers_share(config, make_weight):
    """Whoever lets go of them first, and whichever are shared."""
    for together in (False, True):
        (layer, weight), (other, another) = made(make_weight, config), made(make_weight, config)
        first, *rest = layer._names
        if not together:
            layer.restore()
        setattr(other, first, getattr(layer, first))
        expected = CodebookLinear(another)
        expected.load_state_dict({**canonical(another), first: canonical(weight)[first]})
        for _ in range(2):
            check_layer(other, expected.to_weight())
            check_layer(layer, weight)
        for name in rest:
            setattr(other, name, getattr(layer, name))
        for _ in range(2):
            check_layer(other, weight)
            check_layer(layer, weight)
        other.restore()
        del layer
        check_layer(other, weight)


def test_a_functional_call(make_weight):
    layer, weight = made(make_weight, "m1v4g32", bias=False)
    x = torch.randn(2, 960)
    y = torch.func.functional_call(layer, {"scales": layer.scales * 2}, (x,))
    check(y, 2 * x.double() @ dense_of(weight).T)
    check_layer(layer, weight)


@every_configuration
def test_many_threads(config, make_weight):
    """The first product included, with and without a graph: bit for bit what one thread gets."""
    weight = make_weight(*SHAPE, config)
    layer = layer_of(weight)
    alone, xs = copy.deepcopy(layer), [torch.randn(n, 960) for n in (1, 3, 70)]
    expected = [alone(x) for x in xs]

    def products(first, graph):
        with torch.set_grad_enabled(graph):
            return [layer(xs[i % 3]) for i in range(first, first + 6)]

    for _ in range(5):
        found = at_once([partial(products, first, first % 2 == 0) for first in range(8)])
        for first, ys in enumerate(found):
            assert all(torch.equal(y, expected[i % 3]) for i, y in enumerate(ys, first))
        check_state(layer.state_dict(), canonical(weight, layer.bias))
        layer.restore()


class Block(torch.nn.Module):
    """Equal layers one after the other, with something around."""

    def __init__(self, weights):
        super().__init__()
        self.layers = torch.nn.Sequential(*(layer_of(weight) for weight in weights))

    def forward(self, x):
        return self.layers(x.tanh()) + x


def check_block(block, compiled, n):
    """Product and gradients of a compiled block, against the definition."""
    x, g = torch.randn(n, 64, requires_grad=True), torch.randn(n, 64)
    wide = x.detach().double().requires_grad_()
    exact = wide.tanh()
    biases = [layer.bias.detach().double().requires_grad_() for layer in block.layers]
    for layer, bias in zip(block.layers, biases):
        exact = functional.linear(exact, dense_of(layer.to_weight()), bias)
    exact = exact + wide
    y = compiled(x)
    check(y, exact.detach(), times=5)
    given = torch.autograd.grad(y, (x, *(layer.bias for layer in block.layers)), g)
    for gradient, truth in zip(given, torch.autograd.grad(exact, (wide, *biases), g.double())):
        check(gradient, truth, times=5)
    with torch.no_grad():
        assert torch.equal(compiled(x), y)


@pytest.mark.usefixtures("psumbook_chosen")
@pytest.mark.parametrize("settled", [False, True])
def test_compiled(settled, make_weight):
    """Whether codes are there or not, one graph of three layers serves any number of rows."""
    block = Block([make_weight(64, 64, "m1v4b4g32") for _ in range(3)])
    if settled:
        block(torch.randn(1, 64))
        assert all(map(let_go, block.layers))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, backend=counter, fullgraph=True)
    for n in (3, 5, 70):
        check_block(block, compiled, n)
    assert counter.frame_count <= 4  # with a graph and without, for the first number of rows and for any
    assert all(bool(let_go(layer)) == settled for layer in block.layers)


@pytest.mark.parametrize("settled", [False, True])
def test_compiled_by_inductor(settled, make_weight):
    """Of these calls alone, for nothing takes it as long as loops of its own."""
    weights = [make_weight(64, 64, "m1v4b4g32") for _ in range(2)]
    layers = torch.nn.Sequential(*map(CodebookLinear, weights))
    if settled:
        layers(torch.randn(1, 64))
    compiled = torch.compile(layers, fullgraph=True, dynamic=True)
    dense = dense_of(weights[0]).T @ dense_of(weights[1]).T
    for n in (3, 5):
        x, g = torch.randn(n, 64, requires_grad=True), torch.randn(n, 64)
        y = compiled(x)
        check(y, x.detach().double() @ dense, times=5)
        check(torch.autograd.grad(y, x, g)[0], g.double() @ dense.T, times=5)


def test_one_graph_for_every_layer_of_a_kind(make_weight):
    """Each compiled on its own, as models of many equal blocks are."""
    counter = CompileCounterWithBackend("aot_eager")
    weights = [make_weight(64, 64, "m1v4b4g32") for _ in range(4)]
    layers = [layer_of(weight).prepare() for weight in weights]
    with torch.no_grad():
        for layer, weight in zip(layers, weights):
            x = torch.randn(2, 64)
            y = torch.compile(layer, backend=counter, fullgraph=True)(x)
            check(y, functional.linear(x.double(), dense_of(weight), layer.bias.double()))
    assert counter.frame_count == 1


def test_changes_are_seen_by_a_compiled_layer(make_weight):
    layer, weight = made(make_weight, "m1v4g32")
    other = make_weight(*SHAPE, "m1v4g32")
    compiled, x = torch.compile(layer, backend="aot_eager", fullgraph=True), torch.randn(2, 960)

    def truth(weight):
        return functional.linear(x.double(), dense_of(weight), layer.bias.detach().double())

    check(compiled(x), truth(weight))
    layer.restore()
    check(compiled(x), truth(weight))
    layer.load_state_dict(canonical(other, layer.bias))
    check(compiled(x), truth(other))
    layer.prepare()
    check(compiled(x), truth(other))
    layer.half().float()
    check(compiled(x), truth(other))
    with torch.no_grad():
        layer.scales.zero_()
    check(compiled(x), layer.bias.detach().double().expand(2, -1))


def test_compiled_under_autocast(make_weight):
    layer, weight = made(make_weight, "m1v4g32")
    compiled, x = torch.compile(layer, backend="aot_eager", fullgraph=True), torch.randn(2, 960)
    with torch.autocast("cpu", torch.bfloat16):
        check(
            compiled(x), functional.linear(x.double(), dense_of(weight), layer.bias.detach().double()), torch.bfloat16
        )
    check(compiled(x), functional.linear(x.double(), dense_of(weight), layer.bias.detach().double()))


def test_compiled_in_inference_mode(make_weight):
    with torch.inference_mode():
        layer, weight = made(make_weight, "m1v4g32", bias=False)
        compiled, x = torch.compile(layer, backend="aot_eager", fullgraph=True), torch.randn(2, 960)
        check(compiled(x), x.double() @ dense_of(weight).T)
    x = torch.randn(3, 960, requires_grad=True)
    check(torch.autograd.grad(compiled(x).sum(), x)[0], dense_of(weight).sum(0).expand(3, -1))


def exported(layer, strict=False):
    rows = torch.export.Dim("rows", min=1, max=1000)
    return torch.export.export(layer, (torch.randn(3, 960),), dynamic_shapes={"x": {0: rows}}, strict=strict)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("config", CONFIGS[:2])
def test_exported(config, strict, make_weight):
    """With all tensors, to be read where the layer is not; one that let go of some says how to get them back."""
    layer, weight = made(make_weight, config)
    with pytest.raises(
        Exception, match=rf"{layer._names[0]}: empty, .* restore\(\) puts it back, as before torch.export"
    ):
        exported(layer, strict)
    program = exported(layer.restore(), strict)
    check_state(program.state_dict, canonical(weight, layer.bias))
    assert not let_go(layer)
    bias, x = layer.bias.detach().clone(), torch.randn(5, 960)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    del layer, program
    loaded = torch.export.load(file).module()
    for n in (1, 5, 300):
        x = torch.randn(n, 960)
        check(loaded(x), functional.linear(x.double(), dense_of(weight), bias.double()))


def test_programs_of_before(make_weight):
    """Of a layer that then let go of its codes."""
    layer = layer_of(make_weight(*SHAPE, "m1v4g32"))
    program, x = exported(layer).module(), torch.randn(2, 960)
    y = layer(x)
    assert let_go(layer)
    assert torch.equal(program(x), y)


@pytest.mark.parametrize("settled", [False, True])
def test_traced(settled, make_weight):
    """Before and after it let go of its codes; nothing is done to it on the way."""
    layer, x = layer_of(make_weight(*SHAPE, "m1v4g32")), torch.randn(2, 960)
    if settled:
        layer(x)
    graph = make_fx(layer)(x)
    calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert calls == [torch.ops.codegemm.linear.default]
    script = torch.jit.trace(layer, (x,), check_trace=False)  # which would use it
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(torch.randn(7, 960)).shape == (7, 320)
    assert bool(let_go(layer)) == settled
    y = layer(x)
    assert torch.equal(graph(x), y)
    assert torch.equal(script(x), y)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(layer.restore(), (x,)), file)
    file.seek(0)
    assert torch.equal(torch.jit.load(file)(x), y)


def test_first_product_within_a_transformation(make_weight):
    weight, x = make_weight(*SHAPE, "m1v4g32"), torch.randn(2, 960)
    for transform in (
        lambda layer: torch.func.vmap(layer)(x),
        lambda layer: torch.func.jvp(layer, (torch.zeros_like(x),), (x,))[1],
    ):
        layer = layer_of(weight, bias=False)
        for _ in range(2):
            check(transform(layer), x.double() @ dense_of(weight).T)
            check_layer(layer, weight)


def test_loaded_while_others_call(make_weight):
    """What they are given meanwhile may be of both weights; afterwards it is of the new one, which the layer holds."""
    weights = [make_weight(320, 960, "m1v4g32") for _ in range(2)]
    states = [{name: tensor.clone() for name, tensor in layer_of(each).state_dict().items()} for each in weights]
    layer, x, over = layer_of(weights[0]), torch.randn(2, 960), threading.Event()
    bias = layer.bias.detach().double()

    def call():
        while not over.is_set():
            with torch.no_grad():
                layer(x)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        for number in range(30):
            states[number % 2]["bias"] = bias.float()
            layer.load_state_dict(states[number % 2])
            time.sleep(3e-3)
            with torch.no_grad():
                check(layer(x), x.double() @ dense_of(weights[number % 2]).T + bias)
            assert layer.to_weight() == weights[number % 2]
    finally:
        over.set()
        for caller in callers:
            caller.join()
        sys.setswitchinterval(before)
