"""Adapters on quantised layers, by PEFT."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from support.models import close, quantised, tiny_llama  # noqa: E402

from codegemm.torch import fuse_, quantize_  # noqa: E402
from codegemm.torch.bound import Bound  # noqa: E402
from codegemm.torch.lora import CodebookLoraLinear, for_layers  # noqa: E402

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def quantised_llama():
    """Not to be changed."""
    model = tiny_llama()
    quantize_(model, "m1v4b4g16")
    return model


@pytest.fixture(params=[False, True], ids=["single", "fused"])
def llama(request, quantised_llama):
    """A quantised model of one's own."""
    model = copy.deepcopy(quantised_llama)
    if request.param:
        fuse_(model)
    return model


@pytest.fixture
def tokens():
    return torch.randint(0, 61, (3, 8))


def configured(targets=TARGETS, **options):
    return peft.LoraConfig(r=4, target_modules=targets, **options)


def adapted(model, config=None, **options):
    """With adapters that make a difference."""
    return peft.get_peft_model(model, for_layers(config or configured(init_lora_weights=False, **options)))


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def state(model):
    """All tensors of quantised weights by name."""
    return {
        f"{name}.{key}": tensor.clone()
        for name, layer in quantised(model).items()
        for key, tensor in layer.state_dict().items()
    }


def unchanged(model, before):
    after = state(model)
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in after)


def loras(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, CodebookLoraLinear)}


def test_peft_finds_the_layers(llama, tokens):
    """Adapters alone are trained, and make no difference at first."""
    expected = logits(llama, tokens)
    model = peft.get_peft_model(llama, for_layers(configured()))
    assert len(loras(model)) == 2 * len(TARGETS)
    assert {name.rpartition(".")[2] for name in loras(model)} == set(TARGETS)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 4 * len(TARGETS)
    assert all("lora_A" in name or "lora_B" in name for name in trained)
    assert torch.equal(logits(model, tokens), expected)
    for layer in loras(model).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    assert not close(logits(model, tokens), expected, 1e-2)


def test_without_it_peft_does_not(llama):
    with pytest.raises(ValueError, match=r"CodebookLinear.* is not supported"):
        peft.get_peft_model(llama, configured())


def test_outputs_and_gradients_of_an_adapter(llama):
    """y = (W + s B A) x of every projection, and its gradients."""
    model = adapted(llama, lora_alpha=12)
    for layer in loras(model).values():
        a, b = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
        x = torch.randn(3, layer.in_features, requires_grad=True)
        dense = layer.get_base_layer().dequantize() + 3 * b @ a
        y, truth = layer(x), x @ dense.T
        assert close(y, truth)
        ours, theirs = (torch.autograd.grad(each.sin().sum(), [x, a, b]) for each in (y, truth))
        assert all(close(g, h, 4e-3) for g, h in zip(ours, theirs))


def test_all_linear_layers(llama, tokens):
    """But for the head, as PEFT has it for its own."""
    with pytest.raises(ValueError, match="target_modules='all-linear': model must be given"):
        for_layers(configured("all-linear"))
    with pytest.raises(ValueError, match="model: has no CodebookLinear"):
        for_layers(configured("All-Linear"), tiny_llama(1))
    llama.extra = torch.nn.Linear(4, 4)
    config = for_layers(configured("all-linear"), llama)
    names = set(quantised(llama))
    assert config.target_modules == names | {"extra"}
    model = peft.get_peft_model(llama, config)
    assert {name.removeprefix("base_model.model.") for name in loras(model)} == names
    assert not hasattr(model.base_model.model.lm_head, "lora_A")
    assert logits(model, tokens).shape == (3, 8, 61)
    named = configured(TARGETS)
    assert for_layers(named, llama) is named
    assert set(named.target_modules) == set(TARGETS)


def train(model, tokens, steps=30):
    """The loss of each step."""
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=2e-2)
    losses = []
    for _ in range(steps):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_training_changes_adapters_alone(llama, tokens, monkeypatch):
    """And multiplies no more often than it must: once forward for each group of fused layers."""
    model = peft.get_peft_model(llama, for_layers(configured("all-linear"), llama)).train()
    others = {name: each.detach().clone() for name, each in model.named_parameters() if not each.requires_grad}
    before, products, multiply = state(model), [], Bound.multiply
    monkeypatch.setattr(Bound, "multiply", lambda *given: products.append(1) or multiply(*given))
    losses = train(model, tokens)
    assert losses[-1] < 0.7 * losses[0]
    assert len(products) == len(losses) * (8 if any(layer._fused for layer in quantised(model).values()) else 14)
    assert unchanged(model, before)
    after = dict(model.named_parameters())
    rest = [name for name in others if not name.endswith((".codes", ".codebooks", ".scales"))]
    assert len(rest) == 7
    assert all(torch.equal(after[name], others[name]) for name in rest)


def test_adapters_of_a_file(llama, tokens, tmp_path):
    """Into the quantised model as it was before; they are PEFT's own, with nothing of the weights."""
    fresh, base = copy.deepcopy(llama), logits(llama, tokens)
    assert torch.equal(logits(fresh, tokens), base)
    model = adapted(llama).eval()
    expected = logits(model, tokens)
    model.save_pretrained(tmp_path)
    config = for_layers(peft.LoraConfig.from_pretrained(tmp_path))
    again = peft.PeftModel.from_pretrained(fresh, tmp_path, config=config)
    assert torch.equal(logits(again, tokens), expected)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert all("lora_" in name for name in peft.get_peft_model_state_dict(model))
    assert not close(expected, base, 1e-2)


def test_the_base_model_is_still_there(llama, tokens):
    base, before = logits(llama, tokens), state(llama)
    model = adapted(llama)
    expected = logits(model, tokens)
    with model.disable_adapter():
        assert torch.equal(logits(model, tokens), base)
    assert torch.equal(logits(model, tokens), expected)
    model.add_adapter("other", for_layers(configured(init_lora_weights=False)))
    model.set_adapter("other")
    assert not close(logits(model, tokens), expected, 1e-2)
    model.set_adapter("default")
    assert torch.equal(logits(model, tokens), expected)
    assert torch.equal(logits(model.unload(), tokens), base)
    assert not loras(llama)
    assert unchanged(llama, before)


def test_nothing_is_merged(llama, tokens):
    model = adapted(llama)
    expected, before, layers = logits(model, tokens), state(model), loras(model)
    for merge in (model.merge_adapter, model.merge_and_unload, lambda: model.merge_and_unload(safe_merge=True)):
        with pytest.raises(TypeError, match="no adapter fits into the codes of a quantised weight"):
            merge()
        assert loras(model) == layers
        assert not any(layer.merged for layer in layers.values())
        assert unchanged(model, before)
        assert torch.equal(logits(model, tokens), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing was merged
        model.unmerge_adapter()
    assert torch.equal(logits(model, tokens), expected)


def test_in_half_precision(llama, tokens):
    expected = logits(adapted(llama).float(), tokens)
    half = copy.deepcopy(llama).to(torch.bfloat16)
    y = logits(half, tokens)
    assert y.dtype == torch.bfloat16
    assert close(y.float(), expected, 5e-2)
