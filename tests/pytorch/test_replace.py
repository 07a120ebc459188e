"""Linear layers of models, replaced by quantised ones."""

import copy

import numpy as np
import pytest

import codegemm
from codegemm.quantize.quantizers import E8PQuantizer
from codegemm.testing.problems import example

torch = pytest.importorskip("torch")

from support.models import close, quantised  # noqa: E402

from codegemm.torch import CodebookLinear, fuse_, quantize_, replace, replace_linear  # noqa: E402

nn = torch.nn
CONFIG = "m1v4b3g12"


class Layer(nn.Module):
    """An expert and its router, of layers of odd shapes."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(24, 1, bias=False)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(24, 36), nn.GELU(), nn.Linear(36, 24, bias=False))])

    def forward(self, x):
        return x + self.gate(x).sigmoid() * self.experts[0](x)


class Model(nn.Module):
    """Two layers between an embedding and a head, and what is not to be quantised."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(17, 24)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.adapter = nn.Linear(24, 17)
        self.adapter.weight = self.embed.weight
        self.lm_head = nn.Linear(24, 17)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x) + self.adapter(x)


TAKEN = [f"layers.{i}.experts.0.{k}" for i in range(2) for k in (0, 2)]


def linear(model):
    """A model's own linear layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


class Unchanged:
    """Checks at the end of a `with` that a model has the same modules with the same numbers."""

    def __init__(self, model):
        self.model, self.modules = model, dict(model.named_modules(remove_duplicate=False))
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        modules, state = dict(self.model.named_modules(remove_duplicate=False)), self.model.state_dict()
        assert modules.keys() == self.modules.keys()
        assert all(modules[name] is module for name, module in self.modules.items())
        assert state.keys() == self.state.keys()
        assert all(torch.equal(state[name].nan_to_num(7), self.state[name].nan_to_num(7)) for name in state)
        assert not any(layer._fused for layer in quantised(self.model).values())


def dense_twin(model):
    """The model with the dequantised matrices in linear layers."""
    twin = copy.deepcopy(model)
    for name, layer in quantised(twin).items():
        dense = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        dense.weight, dense.bias = nn.Parameter(layer.dequantize()), layer.bias
        parent, _, own = name.rpartition(".")
        setattr(twin.get_submodule(parent), own, dense)
    return twin


@pytest.mark.parametrize("config", [CONFIG, "m2v3b2g-1", "m1v2b3g6+rotated"])
def test_what_is_quantised_unless_told(config):
    """All but the head, routers and what shares its weight; and the model computes with the quantised matrices."""
    model = Model().eval()
    dense = copy.deepcopy(model)
    quantize_(model, config)
    assert list(quantised(model)) == TAKEN
    assert set(linear(model)) == {"lm_head", "adapter", "layers.0.gate", "layers.1.gate"}
    assert model.adapter.weight is model.embed.weight
    for name, layer in quantised(model).items():
        assert layer.config == config
        assert layer.to_weight() == codegemm.quantize(dense.get_submodule(name).weight, config)
    tokens = torch.randint(0, 17, (2, 5))
    y = model(tokens)
    assert close(y, dense_twin(model)(tokens))
    assert not close(y, dense(tokens), 1e-2)


def test_a_layer_of_two_names_is_one_layer(monkeypatch):
    model = Model()
    model.layers[1] = model.layers[0]
    model.other = model.layers[0].experts[0][2]
    made = []
    monkeypatch.setattr(
        replace, "quantize", lambda *given, **named: made.append(1) or codegemm.quantize(*given, **named)
    )
    quantize_(model, CONFIG)
    assert len(made) == 2
    assert model.layers[1] is model.layers[0]
    assert model.other is model.layers[0].experts[0][2]
    assert isinstance(model.other, CodebookLinear)
    model = Model()
    model.other = model.layers[0].experts[0][2]
    replace_linear(model, {"other": codegemm.quantize(model.other.weight, CONFIG)})
    assert model.other is model.layers[0].experts[0][2]
    assert isinstance(model.other, CodebookLinear)


def test_a_filter_is_asked_for_linear_layers():
    model, asked = Model(), []

    def last(module, name):
        assert module is model.get_submodule(name)
        asked.append(name)
        return name.endswith(".2") or name == "lm_head"

    own, names = model.lm_head.weight, list(linear(model))
    quantize_(model, CONFIG, last)
    assert asked == names
    assert list(quantised(model)) == [name for name in TAKEN if name.endswith(".2")] + ["lm_head"]
    assert model.lm_head.to_weight() == codegemm.quantize(own, CONFIG)


def test_options_are_those_of_quantize():
    model = Model()
    dense = copy.deepcopy(model)
    shown = []

    def progress(title):
        shown.append(title)
        raise KeyboardInterrupt

    with Unchanged(model), pytest.raises(KeyboardInterrupt):
        quantize_(model, CONFIG, progress=progress)
    assert len(shown) == 1
    quantize_(model, codegemm.CodebookConfig(m=1, v=4, b=3, g=12), seed=5, rotate=True, precision="fast")
    for name, layer in quantised(model).items():
        expected = codegemm.quantize(dense.get_submodule(name).weight, CONFIG, seed=5, rotate=True)
        assert layer.to_weight() == expected
        assert isinstance(expected, codegemm.TransformedWeight)
        assert layer.precision == "fast"


def test_calibration_is_by_names(rng):
    model = Model()
    dense, names = copy.deepcopy(model), TAKEN[1:3]
    calibration = {
        name: codegemm.Calibration.of(a.T @ a, len(a))
        for name in names
        for a in [rng.standard_normal((dense.get_submodule(name).in_features,) * 2)]
    }
    quantize_(model, CONFIG, calibration=calibration)
    for name, layer in quantised(model).items():
        matrix = dense.get_submodule(name).weight
        plain = codegemm.quantize(matrix, CONFIG)
        assert layer.to_weight() == codegemm.quantize(matrix, CONFIG, calibration=calibration.get(name))
        assert (layer.to_weight() == plain) == (name not in names)


def counted(monkeypatch):
    """The matrices that `quantize_` quantises from now on."""
    made = []
    monkeypatch.setattr(replace, "quantize", lambda W, *given, **named: made.append(W))
    return made


def test_what_cannot_be_is_said_before_anything_is_quantised(monkeypatch):
    model, made = Model(), counted(monkeypatch)
    calibration = codegemm.Calibration.of(np.eye(24), 24)
    with Unchanged(model):
        for config, message in (
            ("m1v8b3g24", r"layers\.0\.experts\.0\.2: .*36.*filter_fn leaves layers as they are"),
            ("m1v4b3g16", r"layers\.0\.experts\.0\.0: .*24"),
        ):
            with pytest.raises(ValueError, match=message):
                quantize_(model, config)
        with pytest.raises(TypeError, match="filter_fn: 'mlp', must be a function of a layer and its name"):
            quantize_(model, CONFIG, "mlp")
        with pytest.raises(TypeError, match=r"weights: 'small', must be weights by name, as codegemm\.load_all reads"):
            replace_linear(model, "small")
        with pytest.raises(ValueError, match="filter_fn: takes none of the model's 8 linear layers"):
            quantize_(model, CONFIG, lambda module, name: False)
        with pytest.raises(ValueError, match=r"calibration: of layers\.5, lm_head, which no layer is"):
            quantize_(model, CONFIG, calibration={"lm_head": calibration, "layers.5": calibration})
        with monkeypatch.context() as patched:
            patched.setattr(E8PQuantizer, "calibrates", lambda *config: False)
            with pytest.raises(ValueError, match=r"e8p.*takes no calibration"):
                quantize_(model, "e8p", calibration={TAKEN[0]: calibration})
        with pytest.raises(ValueError, match="m7"):
            quantize_(model, "m7")
    for kind in (nn.modules.linear.NonDynamicallyQuantizableLinear, type("Own", (nn.Linear,), {})):
        odd = Model()
        odd.layers[1].experts[0][0] = kind(24, 36)
        with Unchanged(odd), pytest.raises(TypeError, match=rf"layers\.1\.experts\.0\.0: {kind.__name__}, must be"):
            quantize_(odd, CONFIG)
    for alone in (nn.Linear(24, 36), nn.ReLU()):
        with pytest.raises(ValueError, match=r"make a CodebookLinear in its place|takes none of the model's 0"):
            quantize_(alone, CONFIG)
    assert not made


def test_when_the_second_fails_the_first_is_as_it_was():
    model = Model()
    with torch.no_grad():
        model.get_submodule(TAKEN[1]).weight[3, 5] = torch.nan
    with Unchanged(model), pytest.raises(ValueError, match="finite"):
        quantize_(model, CONFIG)
    model = Model()
    with Unchanged(model), pytest.raises(ValueError, match="precision"):
        quantize_(model, CONFIG, precision="half")
    with Unchanged(model), pytest.raises(TypeError, match="no_such_option"):
        quantize_(model, CONFIG, no_such_option=1)
    with torch.device("meta"):
        model = Model()
    with pytest.raises(TypeError, match="on meta"):
        quantize_(model, CONFIG)
    assert not quantised(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_layers_keep(dtype):
    model = Model().to(dtype).eval()
    model.layers[0].train()
    model.layers[1].experts.requires_grad_(False)
    before = {name: (layer, layer.bias, layer.training) for name, layer in linear(model).items()}
    quantize_(model, CONFIG)
    for name, layer in quantised(model).items():
        dense, bias, training = before[name]
        assert layer.bias is bias
        assert layer.training == training
        assert training == name.startswith("layers.0")
        assert bias is None or bias.requires_grad == training
        assert bias is None or bias.dtype == dtype
        assert not any(tensor.requires_grad for tensor in layer.tensors())
        assert layer.to_weight() == codegemm.quantize(dense.weight.float(), CONFIG)
        assert layer(torch.randn(3, layer.in_features, dtype=dtype)).dtype == dtype
    assert model(torch.randint(0, 17, (2, 5))).dtype == dtype


def test_a_quantised_model_is_quantised_no_more():
    model = Model()
    quantize_(model, CONFIG, lambda module, name: name == TAKEN[0])
    first = model.get_submodule(TAKEN[0])
    quantize_(model, CONFIG)
    assert list(quantised(model)) == TAKEN
    assert model.get_submodule(TAKEN[0]) is first
    with Unchanged(model), pytest.raises(ValueError, match="takes none of the model's 4 linear layers"):
        quantize_(model, CONFIG)


def weights_of(model, config=CONFIG):
    """Quantised weights of all layers that `quantize_` takes."""
    return {name: codegemm.quantize(model.get_submodule(name).weight, config) for name in TAKEN}


def test_weights_of_a_file_in_a_model(tmp_path):
    """Whose other tensors come from the same file, into a model that has no memory until then, too."""
    model, path, tokens = Model(), tmp_path / "model.safetensors", torch.randint(0, 17, (2, 5))
    weights = weights_of(model)
    others = {name: tensor for name, tensor in model.state_dict().items() if name.removesuffix(".weight") not in TAKEN}
    codegemm.save_all(path, weights, others)
    replace_linear(model, weights)
    y = model(tokens)
    empty, other = Model(), Model()
    with torch.device("meta"):
        meta = Model()
    for twin in (empty, other, meta):
        replace_linear(twin, codegemm.load_all(path))
        missing = set(twin.state_dict()) - set(others)
        assert {name.rpartition(".")[0] for name in missing} == set(TAKEN)
        bare = {name: tensor.clone() for name, tensor in others.items()}
        twin.load_state_dict(bare, strict=False, assign=True)
        twin.adapter.weight = twin.embed.weight
        assert torch.equal(twin(tokens), y)
        assert {name: layer.to_weight() for name, layer in quantised(twin).items()} == weights


def test_a_replaced_layer_of_every_format(make_weight, rng):
    from codegemm.formats.format import registered

    for config in [text for format in registered() for text in format.examples]:
        rows, columns = example(config)[:2]
        model = nn.Sequential(nn.Linear(columns, rows), nn.ReLU())
        weight, bias = make_weight(rows, columns, config), model[0].bias
        replace_linear(model, {"0": weight})
        x = torch.randn(2, columns)
        assert model[0].bias is bias
        assert torch.equal(model(x), codegemm.linear(x, weight, bias).relu()), config


def test_what_cannot_be_replaced(make_weight):
    model = Model()
    weights = weights_of(model)
    first, last = TAKEN[0], TAKEN[-1]
    shape = (36, 24)
    for wrong, error, message in (
        ({"layers.2.experts": weights[last]}, ValueError, r"'layers\.2\.experts': the model has no module"),
        (
            {last: weights[first]},
            ValueError,
            r"layers\.1\.experts\.0\.2: the weight is \(36, 24\), the layer's \(24, 36",
        ),
        ({"embed": make_weight(17, 24, CONFIG)}, TypeError, "embed: Embedding, must be a torch.nn.Linear itself"),
        ({"layers": weights[last]}, TypeError, "layers: ModuleList, must be"),
        ({"": weights[last]}, TypeError, "Model, must be"),
        (
            {last: weights[last].dequantize()},
            TypeError,
            r"layers\.1\.experts\.0\.2: ndarray, must be a quantised weight",
        ),
        ({last: weights[last].T}, TypeError, "TransposedWeight, must be a quantised weight"),
    ):
        with Unchanged(model), pytest.raises(error, match=message):
            replace_linear(model, {first: weights[first], **wrong})
    with Unchanged(model), pytest.raises(ValueError, match="precision"):
        replace_linear(model, weights, precision="double")
    own = type("Own", (nn.Linear,), {})(*shape[::-1])
    model.layers[1].experts[0][0] = own
    with (
        Unchanged(model),
        pytest.raises(TypeError, match=r"layers\.1\.experts\.0\.0: Own, must be a torch\.nn\.Linear"),
    ):
        replace_linear(model, weights)
    with pytest.raises(ValueError, match="make a CodebookLinear in its place"):
        replace_linear(nn.Linear(24, 36), {"": weights[first]})
    replace_linear(model, {first: weights[first]})
    with Unchanged(model), pytest.raises(TypeError, match=r"CodebookLinear, must be a torch.nn.Linear itself"):
        replace_linear(model, {last: weights[last], first: weights[first]})
    model = Model()
    model.other = model.layers[0].experts[0][0]
    twice = {"other": make_weight(*shape, CONFIG), first: make_weight(*shape, CONFIG)}
    with Unchanged(model), pytest.raises(ValueError, match="another weight"):
        replace_linear(model, twice)
    replace_linear(model, twice | {"other": copy.deepcopy(twice[first])})
    assert model.other is model.layers[0].experts[0][0]


class Attention(nn.Module):
    """Three layers that share x."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(64, 128), nn.Linear(64, 64), nn.Linear(64, 64, bias=False)

    def forward(self, x):
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


def test_a_failing_fusion_puts_the_layers_back(make_weight, monkeypatch):
    model = nn.Sequential(Attention(), Attention())
    shapes = {"q_proj": (128, 64), "k_proj": (64, 64), "v_proj": (64, 64)}
    good = {f"0.{name}": make_weight(*shape, "m1v4b4g16") for name, shape in shapes.items()}
    lattice = {f"1.{name}": make_weight(*shape, "e8p") for name, shape in shapes.items()}
    group = ("q_proj", "k_proj", "v_proj")
    with Unchanged(model), pytest.raises((TypeError, ValueError), match=r"1: q_proj, k_proj, v_proj: .*E8PWeight"):
        replace_linear(model, good | lattice, fuse=[group])
    with Unchanged(model), pytest.raises(ValueError, match="groups q_proj, o_proj: no module has all layers"):
        replace_linear(model, good, fuse=[("q_proj", "o_proj")])

    def interrupted(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(replace, "_joined", interrupted)
        with Unchanged(model), pytest.raises(KeyboardInterrupt):
            replace_linear(model, good, fuse=[group])
    x, apart = torch.randn(3, 64), copy.deepcopy(model[0])
    replace_linear(model, good | lattice)
    replace_linear(apart, {name.removeprefix("0."): weight for name, weight in good.items()})
    with pytest.raises((TypeError, ValueError), match="1: q_proj"):
        fuse_(model)
    assert not any(layer._fused for layer in quantised(model).values())
    for fused, alone in zip(model[0](x), apart(x)):
        assert close(fused, alone)


def test_fused_at_once(make_weight):
    model, x = nn.Sequential(Attention()), torch.randn(3, 64)
    shapes = {"q_proj": (128, 64), "k_proj": (64, 64), "v_proj": (64, 64)}
    weights = {f"0.{name}": make_weight(*shape, "m1v4b4g16") for name, shape in shapes.items()}
    twin = copy.deepcopy(model)
    replace_linear(model, weights, fuse=[("q_proj", "k_proj", "v_proj")])
    replace_linear(twin, weights)
    assert len({layer._fused for layer in quantised(model).values()} - {None}) == 1
    for fused, alone in zip(model(x), twin(x)):
        assert close(fused, alone)
    assert {name: layer.to_weight() for name, layer in quantised(model).items()} == weights
