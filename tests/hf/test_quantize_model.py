"""`codegemm.quantize_model`: what becomes of models of all kinds, and what is said of it."""

import json

import numpy as np
import pytest
import torch
import transformers
from emulator.cases import some
from safetensors.torch import load_file
from support.models import close, loaded, logits, quantised, tiny_llama
from support.whole import CONFIG, REPORT, contents, left_behind, rows, saved

import codegemm
from codegemm.hf import CodegemmConfig
from codegemm.hf.matrices import plan

TEXT = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
GROUPED = {**TEXT, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "head_dim": 8, "num_experts_per_tok": 2}


@pytest.fixture
def dense(tmp_path):
    return saved(tiny_llama(), tmp_path / "dense")


def made(folder, target, **arguments):
    return codegemm.quantize_model(
        folder, target, **{"config": CONFIG, "calibration": rows(), "workers": 1} | arguments
    )


def test_what_is_there_afterwards(dense, tmp_path, tokens):
    (dense / "README.md").write_text("# Mine\n")
    (dense / "notes.txt").write_text("kept")
    heard = []
    done = made(dense, tmp_path / "out", on_layer=heard.append)
    assert left_behind(tmp_path / "out") == []
    assert (done.path, done.tokens, done.resumed, done.left_out) == (tmp_path / "out", 256, 0, ())
    assert list(done.layers) == heard
    blocks = [f"model.layers.{number}" for number in range(2)]
    stages = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
              "mlp.up_proj", "mlp.down_proj")  # fmt: skip
    assert [layer.name for layer in heard] == [f"{block}.{name}" for block in blocks for name in stages]
    assert all(layer.calibrated and layer.rows == 256 and 0 < layer.output_error < 1 for layer in heard)
    assert done.target_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size < done.source_bytes

    weights = codegemm.load_all(tmp_path / "out")
    assert (
        weights.keys()
        == {layer.name for layer in heard}
        == plan(tiny_llama(), CodegemmConfig(CONFIG), {}).matrices.keys()
    )
    before, after = load_file(dense / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for layer in heard:
        W = before.pop(f"{layer.name}.weight").numpy()
        gap = W - weights[layer.name].dequantize(np.float32)
        assert np.isclose(layer.weight_error, np.square(gap).sum() / np.square(W).sum(), rtol=1e-3)
        assert layer.bits_per_weight == weights[layer.name].bits_per_weight
    assert all(torch.equal(after[name], before[name]) for name in before)

    said = json.loads((tmp_path / "out" / REPORT).read_text())
    assert [layer["name"] for layer in said["layers"]] == [layer.name for layer in heard]
    assert said["bits_per_weight"] == done.bits_per_weight
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("# Mine\n")
    assert "block by block for 256 tokens" in card
    assert f"({max(heard, key=lambda layer: layer.output_error).name})" in card
    assert (tmp_path / "out" / "notes.txt").read_text() == "kept"
    model = loaded(tmp_path / "out")
    assert quantised(model).keys() == weights.keys()
    assert close(logits(model.dequantize(), tokens), logits(loaded(tmp_path / "out"), tokens))


def test_it_is_nearer_than_without_a_text(tmp_path, tokens):
    """By the outputs of the whole model; the text is what it was quantised for."""
    dense = saved(tiny_llama(1), tmp_path / "dense")
    base = logits(loaded(dense), rows())
    found = {}
    for name, text in (("with", rows()), ("without", None)):
        done = made(dense, tmp_path / name, calibration=text)
        assert all(layer.calibrated == (text is not None) for layer in done.layers)
        found[name] = float((logits(loaded(tmp_path / name), rows()) - base).norm() / base.norm())
    assert found["with"] < found["without"]
    assert "without a text" in (tmp_path / "without" / "README.md").read_text()


KINDS = {
    "biases": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, GROUPED, "model.layers.0.self_attn.q_proj"),
    "tied": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {**GROUPED, "tie_word_embeddings": True}, ""),
    "without a head": (transformers.LlamaModel, transformers.LlamaConfig, GROUPED, "layers.0.self_attn.q_proj"),
    "an encoder": (
        transformers.BertModel, transformers.BertConfig, TEXT, "encoder.layer.0.attention.self.query",
    ),
    "an encoder's words": (
        transformers.BertForMaskedLM, transformers.BertConfig, TEXT, "bert.encoder.layer.0.attention.self.query",
    ),
    "norms behind": (
        transformers.Gemma2ForCausalLM, transformers.Gemma2Config, {**GROUPED, "head_dim": 8},
        "model.layers.0.mlp.up_proj",
    ),
    "parallel": (
        transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig, TEXT, "gpt_neox.layers.0.attention.dense",
    ),
    "norms without numbers": (
        transformers.OlmoForCausalLM, transformers.OlmoConfig, GROUPED, "model.layers.0.mlp.up_proj",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", some(list(KINDS)))
def test_models_of_other_kinds(kind, tmp_path):
    cls, config, sizes, first = KINDS[kind]
    dense = saved(cls(config(**sizes, pad_token_id=0)), tmp_path / "dense")
    done = made(dense, tmp_path / "out")
    names = plan(cls(config(**sizes, pad_token_id=0)), CodegemmConfig(CONFIG), {}).matrices.keys()
    assert {layer.name for layer in done.layers} == names
    assert not first or first in names
    model, base = loaded(tmp_path / "out", cls), loaded(dense, cls)
    assert quantised(model).keys() == names
    with torch.no_grad():
        y, truth = model(rows())[0], base(rows())[0]
        # Of less than two bits, and far off; what has nothing to do with each other would be 1.4 times the norm apart.
        assert 1e-4 * truth.norm() < (y - truth).norm() < 1.2 * truth.norm()
    for name, parameter in base.named_parameters():
        if name.rpartition(".")[0] not in names or name.endswith(".bias"):
            assert torch.equal(model.get_parameter(name), parameter), name


@pytest.mark.parametrize("dtype", some([torch.bfloat16, torch.float16]))
def test_shards_and_halves(dtype, tmp_path):
    dense = saved(tiny_llama(1).to(dtype), tmp_path / "dense", max_shard_size="8KB")
    assert len(list(dense.glob("*.safetensors"))) > 3
    made(dense, tmp_path / "out", time_limit=0)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {path.name for path in dense.iterdir()}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = {name: load_file(tmp_path / "out" / file)[name] for name, file in index["weight_map"].items()}
    assert held["model.norm.weight"].dtype == held["lm_head.weight"].dtype == dtype
    assert len(quantised(loaded(tmp_path / "out", dtype=torch.float32))) == 7
    weights = codegemm.load_all(tmp_path / "out")
    loaded(dense, dtype=dtype).save_pretrained(tmp_path / "whole")
    made(tmp_path / "whole", tmp_path / "as one", time_limit=0)
    assert codegemm.load_all(tmp_path / "as one") == weights


def test_groups_that_do_not_divide(dense, tmp_path):
    """And layers that are asked for by name, one outside the blocks too."""
    asked = {"*.v_proj": "m2v4b3g16", "lm_head": CONFIG}
    done = made(dense, tmp_path / "out", config="m1v4b3g32", layers=asked, modules_to_not_convert=["o_proj"])
    configs = {layer.name: layer.config for layer in done.layers}
    assert configs["model.layers.1.mlp.down_proj"] == "m1v4b3g24"  # of 48 inputs
    assert configs["model.layers.1.self_attn.v_proj"] == "m2v4b3g16"
    assert not any("o_proj" in name for name in configs)
    assert done.layers[-1].name == "lm_head"
    assert not done.layers[-1].calibrated
    assert done.layers[-1].rows == 0
    assert "1 matrix got no calibration" in (tmp_path / "out" / "README.md").read_text()
    assert {name: layer.config for name, layer in quantised(loaded(tmp_path / "out")).items()} == {
        name: str(codegemm.load(tmp_path / "out", name).config) for name in configs
    }


def test_a_format_that_takes_no_calibration(dense, tmp_path, monkeypatch):
    """Its matrices are those that it makes of the original ones."""
    from codegemm.quantize.quantizers import CodebookQuantizer

    monkeypatch.setattr(CodebookQuantizer, "calibrates", lambda *config: False)
    done = made(dense, tmp_path / "out")
    assert not any(layer.calibrated for layer in done.layers)
    original = loaded(dense)
    for name, layer in quantised(loaded(tmp_path / "out")).items():
        W = original.get_submodule(name).weight.detach()
        assert torch.equal(layer.dequantize(), torch.tensor(codegemm.quantize(W, layer.config, seed=0).dequantize()))


@pytest.mark.parametrize("original", some([True, False]))
def test_experts(original, tmp_path, tokens):
    """As checkpoints have them, and several in one tensor. One that no token goes to gets no calibration."""
    config = transformers.MixtralConfig(**EXPERTS, num_local_experts=4)
    dense = saved(transformers.MixtralForCausalLM(config), tmp_path / "dense", save_original_format=original)
    done = made(dense, tmp_path / "out", calibration=rows(1, 8))
    layers = {layer.name: layer for layer in done.layers}
    assert len(layers) == 4 + 12
    assert sum(layer.rows for name, layer in layers.items() if name.endswith("w1")) == 2 * 8
    for name, layer in layers.items():
        assert layer.calibrated == (8 * layer.rows >= layer.shape[1]), name
    few = [name for name, layer in layers.items() if not layer.calibrated]
    assert f"{len(few)} matrices got no calibration" in (tmp_path / "out" / "README.md").read_text()
    found, base = quantised(loaded(tmp_path / "out")), loaded(dense)
    assert found.keys() == layers.keys()
    for name in few:
        experts, expert, own = name.rsplit(".", 2)
        both = base.get_parameter(f"{experts}.{'down_proj' if own == 'w2' else 'gate_up_proj'}")[int(expert)]
        W = both if own == "w2" else both[:48] if own == "w1" else both[48:]
        assert torch.equal(
            found[name].dequantize(), torch.from_numpy(codegemm.quantize(W, CONFIG).dequantize(np.float32))
        )


def test_tuned_blocks(tmp_path):
    """Are nearer to what they were, and the same again."""
    dense = saved(tiny_llama(1), tmp_path / "dense")
    base = logits(loaded(dense), rows())
    found = {}
    for steps in (0, 30):
        made(dense, tmp_path / f"out{steps}", tune=steps)
        found[steps] = float((logits(loaded(tmp_path / f"out{steps}"), rows()) - base).norm())
    assert found[30] < found[0]
    made(dense, tmp_path / "again", tune=30)
    assert contents(tmp_path / "again") == contents(tmp_path / "out30")


def test_tuned_experts(tmp_path):
    """Also those that no token of a part of the text goes to."""
    config = transformers.MixtralConfig(**EXPERTS, num_local_experts=4)
    model = transformers.MixtralForCausalLM(config)
    model.model.layers[0].mlp.gate.weight.data.zero_()  # all go to the same two
    done = made(saved(model, tmp_path / "dense"), tmp_path / "out", tune=2, time_limit=0)
    assert any(layer.rows == 0 for layer in done.layers)
    loaded(tmp_path / "out")
