"""Experts of a mixture: quantised one by one, under the names of the checkpoint."""

import json

import pytest
import torch
from emulator.cases import some
from safetensors.torch import load_file
from support.models import close, loaded, logits, quantised
from transformers import AutoModelForCausalLM

import codegemm
from codegemm.hf import CodebookExperts, CodegemmConfig

SHAPE = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "initializer_range": 0.2, "num_experts_per_tok": 2, "head_dim": 8,
}  # fmt: skip
CONFIG = "m1v4b4g16"


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**SHAPE, intermediate_size=48, num_local_experts=3))


def qwen3():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"moe_intermediate_size": 48, "intermediate_size": 64, "mlp_only_layers": [0], "num_experts": 3}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **sizes))


KINDS = {
    mixtral: ("model.layers.1.block_sparse_moe.experts", ("w1", "w2", "w3")),
    qwen3: ("model.layers.1.mlp.experts", ("gate_proj", "up_proj", "down_proj")),
}


@pytest.fixture(params=some([*KINDS]), ids=lambda make: make.__name__)
def dense(request, tmp_path):
    """A model's folder, the name of its experts there, and those of their matrices."""
    request.param().save_pretrained(tmp_path / "dense")
    return tmp_path / "dense", *KINDS[request.param]


def test_each_is_quantised_as_by_itself(dense, tmp_path, tokens):
    folder, experts, names = dense
    held = load_file(folder / "model.safetensors")
    model = loaded(folder, quantization_config=CodegemmConfig(CONFIG))
    expected = logits(model, tokens)
    model.save_pretrained(tmp_path / "saved", max_shard_size="8KB")
    weights = codegemm.load_all(tmp_path / "saved")
    assert len(weights) == len(quantised(model))
    for expert in range(3):
        for name in names:
            whole = f"{experts}.{expert}.{name}"
            assert weights[whole] == codegemm.quantize(held[f"{whole}.weight"], CONFIG)
    assert sum(name.startswith(experts) for name in weights) == 9
    assert type(model.model.layers[1].mlp.experts) is CodebookExperts
    assert torch.equal(model.model.layers[1].mlp.gate.weight, held[f"{experts.replace('experts', 'gate')}.weight"])
    entry = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
    assert entry["layers"] == {}
    assert "model.layers.1.mlp.gate" in entry["modules_to_not_convert"]
    again = loaded(tmp_path / "saved")
    assert torch.equal(logits(again, tokens), expected)
    again.save_pretrained(tmp_path / "plain", save_original_format=False)
    assert torch.equal(logits(loaded(tmp_path / "plain"), tokens), expected)


@pytest.mark.parametrize("implementation", some(["grouped_mm", "eager", "batched_mm"], 3))
def test_like_the_dense_model_of_the_same_matrices(dense, tmp_path, tokens, implementation):
    """Whatever transformers is told to multiply experts by; also of few tokens, so that some experts have none."""
    model = loaded(
        dense[0], quantization_config=CodegemmConfig(CONFIG, time_limit=0), experts_implementation=implementation
    )
    few = [logits(model, tokens[:1, :count]) for count in (1, 2)]
    expected = logits(model, tokens)
    trained = model(tokens).logits
    assert close(trained.detach(), expected)
    trained.square().sum().backward()
    slope = model.model.embed_tokens.weight.grad.clone()
    plain = model.dequantize()
    assert not quantised(plain)
    assert close(logits(plain, tokens), expected)
    for count, one in zip((1, 2), few):
        assert close(logits(plain, tokens[:1, :count]), one)
    plain.zero_grad()
    plain(tokens).logits.square().sum().backward()
    assert close(slope, plain.model.embed_tokens.weight.grad, 2e-3)
    plain.save_pretrained(tmp_path / "plain")
    assert (
        load_file(tmp_path / "plain" / "model.safetensors").keys() == load_file(dense[0] / "model.safetensors").keys()
    )
    again = loaded(tmp_path / "plain", experts_implementation=implementation)
    assert torch.equal(logits(again, tokens), logits(plain, tokens))


def test_tokens_without_an_expert(dense):
    """As where others have those: their number is that of all."""
    model = loaded(dense[0], quantization_config=CodegemmConfig(CONFIG, time_limit=0))
    experts = model.model.layers[1].mlp.experts
    x, chosen, shares = torch.randn(3, 32), torch.tensor([[0, 3], [3, 3], [2, 1]]), torch.rand(3, 2)
    with torch.no_grad():
        y = experts(x, chosen, shares)
        assert torch.equal(y[1], torch.zeros(32))
        alone = experts(x[:1], chosen[:1], shares[:1])
        assert close(y[:1], alone)
        assert experts(x[:0], chosen[:0], shares[:0]).shape == (0, 32)


def test_configurations_of_experts(dense, tmp_path):
    """One of all is stored once, one of a single expert by its name."""
    folder, _, names = dense
    inside = "model.layers.1.mlp.experts"
    first, last = names[0], "w2" if "w2" in names else "down_proj"
    asked = {f"*.experts.*.{last}": "m1v4b4g24", f"{inside}.2.{first}": "m2v4b4g32"}
    model = loaded(folder, quantization_config=CodegemmConfig(CONFIG, asked, time_limit=0))
    layers = quantised(model)
    assert layers[f"{inside}.0.{last}"].config == "m1v4b4g24"
    assert layers[f"{inside}.2.{first}"].config == "m2v4b4g-1"
    assert layers[f"{inside}.1.{first}"].config == CONFIG
    model.save_pretrained(tmp_path / "saved")
    entry = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
    assert entry["layers"][f"{inside}.*.{last}"] == "m1v4b4g24"
    assert entry["layers"][f"{inside}.2.{first}"] == "m2v4b4g32"
    assert {name: each.config for name, each in quantised(loaded(tmp_path / "saved")).items()} == {
        name: each.config for name, each in layers.items()
    }


def test_experts_that_stay_dense(dense, tmp_path, tokens):
    """Where they are named."""
    model = loaded(
        dense[0], quantization_config=CodegemmConfig(CONFIG, time_limit=0, modules_to_not_convert=["mlp.experts"])
    )
    assert not any("experts" in name for name in quantised(model))
    expected = logits(model, tokens)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(loaded(tmp_path / "saved"), tokens), expected)


def test_some_experts_alone(dense):
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.experts: all experts of a layer are quantised, or none is"):
        loaded(
            dense[0],
            quantization_config=CodegemmConfig(
                CONFIG, time_limit=0, modules_to_not_convert=["model.layers.1.mlp.experts.2"]
            ),
        )


def test_experts_that_can_not_be_quantised_are_named(tmp_path):
    """And what else would stay dense without a word."""
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes = {**SHAPE, "num_local_experts": 4, "intermediate_size": 48}
    GptOssForCausalLM(GptOssConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts\.gate_up_proj, .* % of the linear parameters"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=CodegemmConfig(CONFIG, time_limit=0))
    named = CodegemmConfig(CONFIG, time_limit=0, modules_to_not_convert=["mlp.experts"])
    assert len(quantised(AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=named))) == 8


def test_layers_of_another_kind(tmp_path):
    """GPT-2's matrices lie on their side."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"nothing to quantise|h\.0\.mlp\.c_fc\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=CodegemmConfig(CONFIG, time_limit=0))
