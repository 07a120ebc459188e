"""Layers that share x, whose outputs one product makes."""

import copy
import io
import pickle
import threading
import weakref

import numpy as np
import pytest

import codegemm

torch = pytest.importorskip("torch")

from support.models import close, compiled, quantised  # noqa: E402

from codegemm.torch import CodebookLinear, fuse_, fused, quantize_  # noqa: E402
from codegemm.torch.bound import Bound  # noqa: E402

nn = torch.nn
GROUP = ("q_proj", "k_proj", "v_proj")
CONFIG, COLUMNS = "m1v4b4g16", 32
CONFIGS = [
    (CONFIG, COLUMNS),
    ("m2v8b5g-1", 72),  # whose codes are in no other order than a file's
    ("m1v16b16g64", 64),
    ("m1v4b3g12+rotated8+offsets", 96),
    ("m2v8g-1+rotated+added", 64),
    ("m1v4b3g8+ordered", 104),
    ("m1v4b4g44+terms3", 132),
]
BIASES = {
    "none": (None, None, None),
    "some": (None, torch.float32, None),
    "half": (torch.float16, None, torch.bfloat16),
    "all": (torch.float32, torch.float32, torch.float64),
}


class Attention(nn.Module):
    """Three layers that are the parts of one weight, the first thirds and the last."""

    def __init__(self, weight, biases=BIASES["none"]):
        super().__init__()
        for part, (name, dtype) in enumerate(zip(GROUP, biases)):
            piece = weight[weight.shape[0] * part // 3 : weight.shape[0] * (part + 1) // 3]
            bias = None if dtype is None else torch.randn(piece.shape[0], dtype=dtype)
            self.add_module(name, CodebookLinear(piece, bias))

    def forward(self, x):
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


@pytest.fixture
def make_attention(make_weight):
    """A fused one of 13, 13 and 14 outputs, and the weight of all."""

    def make(config=CONFIG, columns=COLUMNS, biases="some"):
        weight = make_weight(40, columns, config, 3)
        attention = Attention(weight, BIASES[biases])
        fuse_(attention)
        return attention, weight

    return make


@pytest.fixture
def products(monkeypatch):
    """The shapes of all x that were multiplied, one after the other."""
    shapes, multiply = [], Bound.multiply

    def counting(self, x, bias):
        shapes.append(tuple(x.shape))
        return multiply(self, x, bias)

    monkeypatch.setattr(Bound, "multiply", counting)
    return shapes


def alone(attention):
    """A copy whose layers are multiplied each by itself."""
    twin = copy.deepcopy(attention)
    twin.q_proj._fused.dissolve()
    return twin


def truth(attention, weight, x):
    """The outputs, of one product with all rows of the weight and with all biases."""
    layers = list(quantised(attention).values())
    biases = [torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach() for layer in layers]
    bias = None if all(layer.bias is None for layer in layers) else torch.cat([each.double() for each in biases])
    ends = np.cumsum([layer.out_features for layer in layers])[:-1].tolist()
    return codegemm.linear(x.detach(), weight, bias).tensor_split(ends, -1)


def same(outputs, expected):
    """As near as rounding to the dtype of the outputs allows."""
    epsilon = torch.finfo(outputs[0].dtype).eps
    return len(outputs) == len(expected) and all(
        close(y.double(), z.double(), 4 * epsilon) for y, z in zip(outputs, expected)
    )


@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize(("config", "columns"), CONFIGS)
def test_outputs_are_those_of_one_product(config, columns, biases, make_attention, products):
    attention, weight = make_attention(config, columns, biases)
    for shape in ((columns,), (1, columns), (9, columns), (2, 3, columns), (0, columns)):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = torch.randn(shape, dtype=dtype)
            products.clear()
            with torch.no_grad():
                y = attention(x)
            assert products == [shape]
            assert all(part.dtype == dtype for part in y)
            assert same(y, truth(attention, weight, x)) or 0 in shape
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(9, columns, dtype=dtype)
        for y, z in zip(attention(x), alone(attention)(x)):
            assert close(y, z)


def test_whoever_is_called_first_and_however_often(make_attention, products):
    """One product for every layer's first call, one more whenever a layer has given its part away."""
    attention, weight = make_attention()
    q, k, v = quantised(attention).values()
    x, other = torch.randn(2, COLUMNS), torch.randn(2, COLUMNS)

    def check(calls, number):
        products.clear()
        for layer, given in calls:
            part = [q, k, v].index(layer)
            assert same([layer(given)], [truth(attention, weight, given)[part]])
        assert len(products) == number

    with torch.no_grad():
        check([(v, x), (q, x), (k, x)], 1)
        check([(k, x), (v, x), (q, x)], 1)
        check([(q, x), (q, x)], 2)
        check([(k, x), (v, x)], 0)  # of the second
        check([(k, x)] * 3, 3)
        check([(q, other), (q, x), (k, x), (k, other)], 3)
        check([(v, other), (q, other)], 0)
        check([(q, x.clone()), (k, x.clone()), (v, x.clone())], 3)
        check([(layer, given) for given in (x, other) for layer in (q, k, v)], 2)
        q(x)
        x.mul_(2)
        check([(k, x), (q, x), (v, x)], 1)
        k(x)
        x[0, 3] = 5
        check([(v, x), (k, x)], 1)
    x, other = torch.randn(2, COLUMNS), torch.randn(2, COLUMNS)
    with torch.inference_mode():
        check([(q, x), (k, x), (v, x)], 1)
        x = x.clone()
        assert x.is_inference()
        check([(q, x), (k, x), (v, x), (v, other), (k, x)], 3)


def test_a_graph_is_not_taken_for_none(make_attention, products):
    attention, _ = make_attention()
    x = torch.randn(2, COLUMNS, requires_grad=True)
    with torch.no_grad():
        assert not attention.q_proj(x).requires_grad
    assert attention.k_proj(x).requires_grad
    with torch.no_grad():
        assert not attention.v_proj(x).requires_grad
    assert len(products) == 3


def test_every_thread_has_its_own(make_attention, products):
    attention, weight = make_attention()
    inputs = [torch.randn(rows, COLUMNS) for rows in (1, 1, 2, 3)]
    expected = [truth(attention, weight, x) for x in inputs]
    products.clear()
    wrong, together = [], threading.Barrier(len(inputs))

    def run(x, outputs, order):
        layers = list(quantised(attention).values())
        for _ in range(20):
            with torch.inference_mode():
                for part in order:
                    together.wait()
                    if not same([layers[part](x)], [outputs[part]]):
                        wrong.append(part)

    threads = [
        threading.Thread(target=run, args=(x, outputs, order))
        for x, outputs, order in zip(inputs, expected, ((0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(products) == 20 * len(inputs)
    with torch.inference_mode():
        assert same(attention(inputs[0]), expected[0])


@pytest.mark.parametrize(("config", "columns"), CONFIGS)
def test_gradients(config, columns, make_attention, products):
    """Of x and of the biases, once and twice."""
    attention, _ = make_attention(config, columns, "half")
    twin = alone(attention)
    x = torch.randn(3, columns, requires_grad=True)
    weights = [torch.randn(3, layer.out_features) for layer in quantised(attention).values()]

    def gradients(model):
        loss = sum((y * w).sin().sum() for y, w in zip(model(x), weights))
        wanted = [x, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
        return torch.autograd.grad(loss, wanted)

    products.clear()
    fused_ones = gradients(attention)
    assert products == [(3, columns)]
    assert len(fused_ones) == 3
    for of_fused, of_single in zip(fused_ones, gradients(twin)):
        assert close(of_fused, of_single, 4e-3 if of_fused.dtype == torch.float32 else 2e-2)

    def penalty(model):
        first = torch.autograd.grad(sum(y.sin().sum() for y in model(x)), x, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), x)[0]

    assert close(penalty(attention), penalty(twin), 4e-3)


def test_gradients_through_checkpoints(make_attention):
    from torch.utils.checkpoint import checkpoint

    attention, _ = make_attention()
    twin, x = alone(attention), torch.randn(3, COLUMNS, requires_grad=True)

    def gradient(model):
        y = checkpoint(lambda x: [part.sin() for part in model(x * 2)], x, use_reentrant=False)
        return torch.autograd.grad(sum(part.sum() for part in y), x)[0]

    assert close(gradient(attention), gradient(twin), 4e-3)
    assert not attention.q_proj._fused._made


def test_each_keeps_its_own_state(make_attention, products):
    attention, weight = make_attention()
    x = torch.randn(3, COLUMNS)
    attention(x)
    plain = Attention(weight, BIASES["some"]).state_dict()
    state = attention.state_dict()
    assert list(state) == list(plain)
    for name, tensor in plain.items():
        assert state[name].dtype == tensor.dtype
        assert name.endswith("bias") or torch.equal(state[name], tensor)
    for name, layer in quantised(attention).items():
        own = layer.state_dict()
        assert all(torch.equal(tensor, state[f"{name}.{key}"]) for key, tensor in own.items())
        assert layer.to_weight() == weight[: layer.out_features] or name != "q_proj"
        assert layer.bias is None or layer.bias is dict(attention.named_parameters())[f"{name}.bias"]


@pytest.mark.parametrize(("config", "columns"), CONFIGS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_other_weights_are_loaded(config, columns, mode, make_attention, products):
    """Into all layers, into one of them, and assigned."""
    attention, _ = make_attention(config, columns)
    other, weight = make_attention(config, columns)
    x = torch.randn(3, columns)
    with mode():
        before = attention(x)
        for _ in range(2):
            attention.k_proj.load_state_dict(other.k_proj.state_dict())
            if "+rotated" in config or "+ordered" in config:
                with pytest.raises(ValueError, match=r"(signs|order) must be the same"):
                    attention(x)
            else:
                products.clear()
                assert same(attention(x), [before[0], other(x)[1], before[2]])
                assert len(products) == 2
        attention.load_state_dict(other.state_dict())
        assert same(attention(x), truth(other, weight, x))
        third, weight = make_attention(config, columns)
        third(x)
        attention.load_state_dict(third.state_dict(), assign=True)
        products.clear()
        assert same(attention(x), truth(third, weight, x))
        assert len(products) == 1


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved])
@pytest.mark.parametrize(("config", "columns"), CONFIGS[:2])
def test_copies_are_fused_and_their_own(config, columns, copied, make_attention, products):
    attention, _ = make_attention(config, columns)
    x, parent = torch.randn(3, columns), nn.ModuleList([attention])
    with torch.no_grad():
        y = attention(x)
    for run in (compiled(attention.q_proj)[0], attention.q_proj):
        run(x.requires_grad_() * 2)  # and the others' parts wait
    with torch.no_grad():
        twin = copied(parent)[0]
        together = {layer._fused for layer in quantised(twin).values()}
        assert len(together) == 1
        assert not together & {attention.q_proj._fused}
        products.clear()
        assert same(twin(x), y)
        assert len(products) == 1
        for tensor in twin.state_dict().values():
            tensor.zero_()
        twin.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in twin.state_dict().items()})
        assert not any(part.any() for part in twin(x))
        assert same(attention(x), y)
        products.clear()
        for part, name in enumerate(GROUP):
            single = copied(attention.get_submodule(name))
            assert same([single(x)], y[part : part + 1])


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double", "float"])
def test_moved_and_converted(convert, make_attention, products):
    attention, weight = make_attention(biases="all")
    attention(torch.randn(1, COLUMNS))
    getattr(attention, convert)()
    dtype = attention.q_proj.bias.dtype
    x = torch.randn(3, COLUMNS, dtype=dtype)
    products.clear()
    y = attention(x)
    assert len(products) == 1
    assert all(part.dtype == dtype for part in y)
    assert same([part.detach() for part in y], truth(attention, weight, x))


def test_biases_are_changed(make_weight):
    """In place, where what was joined of them may come to lie where it lay before."""
    for dtype in (torch.float16, torch.float32):
        attention = Attention(make_weight(3 * 1024, COLUMNS, CONFIG, 3), (dtype,) * 3)
        fuse_(attention)
        x, biases = torch.zeros(1, COLUMNS), [layer.bias for layer in quantised(attention).values()]
        with torch.no_grad():
            for number in range(50):
                for bias in biases:
                    bias.fill_(number)
                assert all((part == number).all() for part in attention(x))


@pytest.mark.parametrize("traced", [False, True])
def test_under_autocast(traced, make_attention, products):
    """One product in its dtype, and another one where it is off."""
    attention, weight = make_attention()
    run, graphs = compiled(attention) if traced else (attention, [])
    for gradient in (False, True):
        x = torch.randn(3, COLUMNS, requires_grad=gradient)
        products.clear()
        with torch.autocast("cpu", torch.bfloat16):
            y = run(x)
        assert len(products) == 1
        assert same([part.detach() for part in y], truth(attention, weight, x.bfloat16()))
        assert not attention.q_proj._fused._made
    if traced:
        assert graphs == [1, 1]
        return
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert attention.q_proj(x).dtype == torch.bfloat16
        assert attention.k_proj(x).dtype == torch.float32


@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_biases_of_any_dtype_under_autocast(dtype, biases, make_attention):
    attention, weight = make_attention(biases=biases)
    x = torch.randn(3, COLUMNS)
    for gradient in (False, True):
        with torch.autocast("cpu", dtype):
            y = attention(x.requires_grad_(gradient))
        assert same([part.detach() for part in y], truth(attention, weight, x.to(dtype)))


@pytest.mark.parametrize("loaded", [False, True])
def test_the_first_product_within_a_transformation(loaded, make_attention):
    """Whoever traces or transforms sees the operation alone."""
    attention, weight = make_attention()
    if loaded:
        attention.load_state_dict(copy.deepcopy(attention.state_dict()))
    x = torch.randn(2, COLUMNS)
    y, tangents = torch.func.jvp(attention, (x,), (x,))
    assert same(y, truth(attention, weight, x))
    for part, tangent, layer in zip(y, tangents, quantised(attention).values()):
        assert close(tangent + (0 if layer.bias is None else layer.bias), part)
    assert same(attention(x), truth(attention, weight, x))


def test_on_the_meta_device(make_attention):
    attention, _ = make_attention()
    y = attention.to("meta")(torch.randn(2, COLUMNS, device="meta"))
    assert [part.shape for part in y] == [(2, 13), (2, 13), (2, 14)]


def test_a_state_without_the_weights(make_attention):
    attention, weight = make_attention(biases="all")
    x = torch.randn(3, COLUMNS)
    attention(x)
    attention.load_state_dict({"q_proj.bias": torch.zeros(13)}, strict=False)
    with torch.no_grad():
        assert same(attention(x), truth(attention, weight, x))


def test_nothing_is_kept(make_attention):
    """Of x and the outputs, when all have taken their parts; with a graph, and in a compiled one, too."""
    attention, _ = make_attention()

    def compiled_product(x):
        return compiled(attention)[0](x)

    for run in (attention, torch.no_grad()(attention), torch.inference_mode()(attention), compiled_product):
        for gradient in (False, True):
            x = torch.randn(3, COLUMNS, requires_grad=gradient)
            y = run(x)
            kept = [weakref.ref(x), weakref.ref(y[0]), weakref.ref(y[0].untyped_storage())]
            kept += [weakref.ref(y[0]._base)] if y[0]._base is not None else []
            del x, y
            assert not any(each() is not None for each in kept)
    x = torch.randn(3, COLUMNS)
    attention.q_proj(x)
    attention.k_proj(x)
    kept = weakref.ref(x)
    del x
    assert kept() is not None  # for v_proj
    attention(torch.randn(3, COLUMNS))
    assert kept() is None


@pytest.mark.usefixtures("psumbook_chosen")
def test_codes_are_held_once(make_attention):
    attention, _ = make_attention()
    for layer in quantised(attention).values():
        assert layer.codes.numel() == 0
    attention.double()
    attention(torch.randn(3, COLUMNS))
    for layer in quantised(attention).values():
        assert layer.codes.numel() == 0
        layer.restore()
        assert layer.codes.numel()


@pytest.mark.parametrize("gradient", [False, True])
def test_a_graph_has_one_operation_for_a_group(gradient, make_attention):
    parent = nn.ModuleList([make_attention()[0], make_attention(biases="half")[0], make_attention(biases="none")[0]])
    x = torch.randn(3, COLUMNS, requires_grad=gradient)

    def run(x):
        y = [part for attention in parent for part in attention(x)]
        z = [part for attention in parent for part in attention(x.sin())]
        return y + z

    traced, graphs = compiled(run, "aot_eager")
    for _ in range(3):
        y, z = traced(x), run(x)
        assert same(y, z)
        if gradient:
            ours, theirs = (torch.autograd.grad(sum(part.sin().sum() for part in each), x)[0] for each in (y, z))
            assert close(ours, theirs, 1e-5)
    assert graphs == [6]


def test_a_graph_of_any_number_of_rows(make_attention):
    attention, weight = make_attention()
    traced, graphs = compiled(attention)
    with torch.no_grad():
        for rows in (3, 4, 7, 40):
            x = torch.randn(rows, COLUMNS)
            assert same(traced(x), truth(attention, weight, x))
    assert graphs == [1, 1]


def test_another_x_in_a_graph(make_attention):
    attention, weight = make_attention()
    q, k, v = quantised(attention).values()
    traced, graphs = compiled(lambda x, z: (q(x), k(z), v(z), v(x), k(x), q(z)))
    x, z = torch.randn(2, 3, COLUMNS)
    with torch.no_grad():
        parts = [truth(attention, weight, each) for each in (x, z)]
        expected = [parts[each][part] for each, part in ((0, 0), (1, 1), (1, 2), (0, 2), (0, 1), (1, 0))]
        for _ in range(2):
            assert same(traced(x, z), expected)
    assert graphs == [4]


def test_graphs_of_single_layers(make_attention):
    """What one has left for others is not theirs later on: x may have other numbers then, or a graph of gradients."""
    attention, weight = make_attention()
    x = torch.randn(3, COLUMNS)
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    first, second = (torch.compile(lambda x, n=n: attention.get_submodule(n)(x), backend=counting) for n in GROUP[:2])
    with torch.no_grad():
        for _ in range(4):
            assert same([first(x)], truth(attention, weight, x)[:1])
            x.normal_()
            assert same([second(x)], truth(attention, weight, x)[1:2])
        assert len(graphs) == 2
        x.requires_grad_()
        assert not first(x).requires_grad
    assert second(x).requires_grad


def test_a_graph_of_each_layer_of_a_model(make_attention):
    """Compiled layer by layer, one graph serves all that are alike."""
    attentions = [make_attention() for _ in range(3)]
    torch._dynamo.reset()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    x = torch.randn(3, COLUMNS)
    with torch.no_grad():
        for attention, weight in attentions:
            attention.compile(backend=counting, fullgraph=True)
            for _ in range(2):
                assert same(attention(x), truth(attention, weight, x))
    assert len(graphs) <= 2


def test_what_is_not_fused(make_weight):
    def model(*weights, **options):
        return nn.Sequential(nn.ModuleDict({n: CodebookLinear(w, **options) for n, w in zip(GROUP, weights)}))

    good = [make_weight(24, 64, "m1v4b4g16") for _ in GROUP]
    for weights, error, message in (
        ([make_weight(64, 64, "e8p") for _ in GROUP], TypeError, "E8PWeights can't be joined"),
        ([*good[:2], make_weight(24, 64, "m1v4b3g16")], ValueError, "config must be the same, got .*m1v4b3g16"),
        ([*good[:2], make_weight(24, 64, "m1v4b4g32")], ValueError, "config must be the same"),
        ([*good[:2], make_weight(24, 96, "m1v4b4g16")], ValueError, "in_features must be the same"),
        ([*good[:2], make_weight(64, 64, "e8p")], TypeError, "a CodebookWeight can't be joined with a E8PWeight"),
        ([make_weight(24, 64, "m1v4b4g16+rotated") for _ in GROUP], ValueError, "signs must be the same"),
    ):
        wrong = nn.ModuleList([model(*good), model(*weights)])
        x = torch.randn(2, 64)
        before = [layer(x) for layer in quantised(wrong).values() if layer.in_features == 64]
        with pytest.raises(error, match=f"1\\.0: q_proj, k_proj, v_proj: concat: {message}"):
            fuse_(wrong)
        assert not any(layer._fused for layer in quantised(wrong).values())
        after = [layer(x) for layer in quantised(wrong).values() if layer.in_features == 64]
        assert all(close(y, z) for y, z in zip(before, after, strict=True))
    mixed = model(*good)
    mixed[0]["k_proj"] = CodebookLinear(good[1], precision="fast")
    with pytest.raises(ValueError, match=r"0: q_proj, k_proj, v_proj: .*precision must be the same"):
        fuse_(mixed)
    mixed[0]["k_proj"] = nn.Linear(64, 24)
    for absent in (mixed, model(*good[:2]), nn.ReLU(), mixed[0]["q_proj"]):
        with pytest.raises(ValueError, match="groups q_proj, k_proj, v_proj; gate_proj, up_proj: no module has all"):
            fuse_(absent)
    assert not any(layer._fused for layer in quantised(mixed).values())
    fuse_(mixed, [])
    apart = nn.ModuleDict({name: CodebookLinear(make_weight(64, 64, "e8p")) for name in "ab"})
    with pytest.raises(TypeError, match="the model: a, b: concat: E8PWeights can't be joined"):
        fuse_(apart, ["ab"])


def test_groups_of_ones_own(make_weight, products):
    """Also of layers that have no such names, of one precision other than the usual, and of a layer alone."""
    model = nn.ModuleDict({name: CodebookLinear(make_weight(24, 64, CONFIG), precision="fast") for name in "abcd"})
    x = torch.randn(3, 64)
    with torch.no_grad():
        y = [layer(x) for layer in model.values()]
        fuse_(model, ["ac", "d"])
        products.clear()
        for _ in range(2):
            for layer, expected in zip(model.values(), y):
                assert close(layer(x), expected, 6e-2)
        assert len(products) == 6
    assert model["a"]._fused.precision == "fast"


def test_a_layer_is_of_the_last_group(make_attention, products, monkeypatch):
    """And the others of its former one are multiplied alone again."""
    attention, weight = make_attention()
    x = torch.randn(3, COLUMNS)
    settled, settle = [], fused.settle
    monkeypatch.setattr(fused, "settle", lambda *given: settled.append(1) or settle(*given))
    for groups, number in (
        ([GROUP], 1),
        ([GROUP[:2]], 2),
        ([GROUP[1:]], 2),
        ([GROUP, GROUP[::2]], 2),
        ([GROUP[:1]], 3),
    ):
        fuse_(attention, groups)
        with torch.no_grad():
            attention(x)
            products.clear()
            settled.clear()
            y = attention(x)
        assert len(products) == number
        assert not settled
        assert all(close(y, z) for y, z in zip(y, truth(attention, weight, x)))
        attention.load_state_dict(attention.state_dict())


def test_fused_after_it_was_quantised(products):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(24, 36), nn.Linear(24, 36, bias=False)
            self.down_proj = nn.Linear(36, 24)

        def forward(self, x):
            return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))

    model, x = nn.Sequential(Block(), Block()), torch.randn(3, 24)
    quantize_(model, "m1v4b3g12")
    y = model(x)
    assert len(products) == 6
    products.clear()
    fuse_(model)
    assert close(model(x), y, 2e-3)
    assert len(products) == 4
