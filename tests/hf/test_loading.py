"""Models quantised while they are loaded, saved, and loaded again."""

import json
import weakref

import numpy as np
import pytest
import torch
import transformers
from emulator.cases import some
from safetensors.torch import load_file, save_file
from support.layers import check_state
from support.models import close, compiled, loaded, logits, quantised, tiny_llama
from transformers import AutoModelForCausalLM

import codegemm
from codegemm.formats.format import fitted
from codegemm.hf import CodegemmConfig, quantizer

CONFIG = "m1v4b4g32"


@pytest.fixture
def dense(tmp_path):
    """A model's folder, in bfloat16."""
    tiny_llama(tie_word_embeddings=True).bfloat16().save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def entry(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.usefixtures("psumbook_chosen")
def test_each_matrix_is_quantised_as_by_itself(dense):
    """Heads and embeddings are not."""
    model = loaded(dense, quantization_config=CodegemmConfig(CONFIG, seed=3))
    layers, held = quantised(model), load_file(dense / "model.safetensors")
    assert len(layers) == 14
    for name, layer in layers.items():
        expected = codegemm.quantize(held[f"{name}.weight"], fitted(CONFIG, layer.in_features), seed=3)
        assert layer.to_weight() == expected
        assert not any(parameter.requires_grad for parameter in layer.parameters())
        assert layer.codes.numel() == 0  # held once, by the kernel
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == model.dtype == torch.bfloat16
    assert model.is_quantized


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": torch.float32}, {"dtype": torch.float16}, {"device_map": "auto"}, {"device_map": "cpu"}],
    ids=str,
)
@pytest.mark.parametrize("size", some(["4KB", "5GB"]))
def test_saved_and_loaded_bit_for_bit(dense, tmp_path, tokens, options, size):
    first = loaded(dense, quantization_config=CodegemmConfig(CONFIG, time_limit=0), **options)
    expected = logits(first, tokens)
    first.save_pretrained(tmp_path / "saved", max_shard_size=size)
    assert (len(list((tmp_path / "saved").glob("*.safetensors"))) > 1) == (size == "4KB")
    second = loaded(tmp_path / "saved", **options)
    assert second.dtype == expected.dtype
    assert torch.equal(logits(second, tokens), expected)
    assert torch.equal(logits(first, tokens), expected)
    for name, layer in quantised(second).items():
        assert layer.to_weight() == quantised(first)[name].to_weight()
        assert {each.dtype for each in layer.parameters()} == {torch.uint8, torch.float16}
    second.save_pretrained(tmp_path / "again", max_shard_size=size)
    for path in (tmp_path / "saved").glob("*.safetensors"):
        check_state(load_file(tmp_path / "again" / path.name), load_file(path))
    assert entry(tmp_path / "again") == entry(tmp_path / "saved")


@pytest.mark.parametrize(
    "config", some(["m2v4b5g16+rotated", "e8p", "q2v4g16", "m1v2b9g-1", "qtip", "m1v4b4g16+rotated16"])
)
def test_every_format(config, tmp_path, rng):
    model = tiny_llama(head_dim=16)
    for layer in (layer for layer in model.modules() if type(layer) is torch.nn.Linear):
        layer.weight.data *= torch.rand(()) + 1e-3
    model.resize_token_embeddings(64)
    model = type(model)(type(model.config)(**{**model.config.to_dict(), "hidden_size": 128, "intermediate_size": 256}))
    model.save_pretrained(tmp_path / "dense")
    first = loaded(tmp_path / "dense", quantization_config=CodegemmConfig(config, time_limit=0.1))
    tokens = torch.from_numpy(rng.integers(0, 61, (1, 5)))
    expected = logits(first, tokens)
    first.save_pretrained(tmp_path / "saved")
    weights = codegemm.load_all(tmp_path / "saved")
    second = loaded(tmp_path / "saved")
    assert torch.equal(logits(second, tokens), expected)
    assert weights.keys() == quantised(first).keys()
    for name, weight in weights.items():
        assert quantised(first)[name].to_weight() == weight


def test_layers_of_their_own_configurations(dense, tmp_path, caplog):
    """By names and patterns, the last that fits; groups that do not divide a row are told of once, and stored."""
    asked = {"*.down_proj": "m2v4b4g16", "model.layers.1.*": "m2v4b3g16", "model.layers.1.mlp.down_proj": "m1v2b4g16"}
    dense_list = ["o_proj", "model.layers.0.self_attn.k_proj"]
    model = loaded(dense, quantization_config=CodegemmConfig("m1v4b4g48", asked, dense_list))
    layers = quantised(model)
    assert {layers[f"model.layers.1.{name}"].config for name in ("self_attn.q_proj", "mlp.up_proj")} == {"m2v4b3g16"}
    assert layers["model.layers.0.mlp.down_proj"].config == "m2v4b4g16"
    assert layers["model.layers.1.mlp.down_proj"].config == "m1v2b4g16"
    assert layers["model.layers.0.mlp.up_proj"].config == "m1v4b4g-1"  # one group of 32 is a row
    assert "model.layers.1.self_attn.o_proj" in layers  # named in `layers`
    [said] = [record.getMessage() for record in caplog.records if record.name.startswith("codegemm.hf")]
    assert said == "4 layers have 32 inputs, which the group size of m1v4b4g48 does not divide: m1v4b4g32"
    model.save_pretrained(tmp_path / "saved")
    told = entry(tmp_path / "saved")
    assert told["config"] == "m1v4b4g48"
    assert told["layers"]["model.layers.0.mlp.up_proj"] == "m1v4b4g32"
    assert told["modules_to_not_convert"] == [
        "lm_head", "model.embed_tokens", "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.o_proj",
    ]  # fmt: skip
    again = quantised(loaded(tmp_path / "saved"))
    assert {name: layer.config for name, layer in again.items()} == {name: each.config for name, each in layers.items()}


@pytest.mark.parametrize(("name", "count"), [("mlp", 8), ("layers.1", 7), ("model.layers.1", 7), ("1.mlp", 11)])
def test_all_that_is_in_a_module_stays_dense(dense, name, count):
    """By any name that the module has, as its layers do by theirs."""
    config = CodegemmConfig(CONFIG, time_limit=0, modules_to_not_convert=[name])
    layers = quantised(loaded(dense, quantization_config=config))
    assert len(layers) == count
    assert not any(f".{name}." in f".{layer}" for layer in layers)


def test_disk_and_back(dense, tmp_path, tokens):
    """Layers that accelerate offloads, quantised while they are loaded and not."""
    place = {"model.embed_tokens": "cpu", "lm_head": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    place |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    first = loaded(
        dense,
        quantization_config=CodegemmConfig(CONFIG, time_limit=0),
        device_map=place,
        offload_folder=tmp_path / "offloaded",
    )
    assert quantised(first)["model.layers.1.mlp.up_proj"].codes.is_meta
    expected = logits(first, tokens)
    assert torch.equal(logits(first, tokens), expected)
    assert torch.equal(
        logits(loaded(dense, quantization_config=CodegemmConfig(CONFIG, time_limit=0)), tokens), expected
    )
    first.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(loaded(tmp_path / "saved"), tokens), expected)
    second = loaded(tmp_path / "saved", device_map=place, offload_folder=tmp_path / "again")
    for _ in range(2):
        assert torch.equal(logits(second, tokens), expected)
    with pytest.raises(ValueError, match=r"model\.layers\.1\..*: is offloaded"):
        second.dequantize()
    assert second.is_quantized


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_dequantized_again(dense, tmp_path, tokens, dtype):
    model = loaded(dense, quantization_config=CodegemmConfig(CONFIG, time_limit=0), dtype=torch.float32)
    expected = logits(model, tokens)
    weights = {name: layer.to_weight().dequantize() for name, layer in quantised(model).items()}
    plain = model.dequantize(dtype) if dtype else model.dequantize()
    assert not quantised(plain)
    assert close(logits(plain, tokens), expected)
    for name, weight in weights.items():
        assert np.array_equal(plain.get_submodule(name).weight.detach().numpy(), weight)
    plain.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert torch.equal(logits(loaded(tmp_path / "plain"), tokens), logits(plain, tokens))
    plain.zero_grad()
    plain(tokens).logits.sum().backward()
    assert plain.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_one_dense_matrix_at_a_time(dense, monkeypatch):
    """When one is quantised, those before are gone."""
    seen, quantize = [], quantizer.quantize

    def watched(matrix, *arguments, **options):
        assert not any(each() is not None for each in seen)
        seen.append(weakref.ref(matrix))
        return quantize(matrix, *arguments, **options)

    monkeypatch.setattr(quantizer, "quantize", watched)
    loaded(dense, quantization_config=CodegemmConfig(CONFIG, time_limit=0))
    assert len(seen) == 14


def test_it_generates_and_compiles(dense, tokens):
    model = loaded(dense, quantization_config=CodegemmConfig(CONFIG, time_limit=0), dtype=torch.float32)
    text = model.generate(tokens, max_new_tokens=5, do_sample=False, eos_token_id=61)  # which none of its tokens is
    assert text.shape == (2, 14)
    assert torch.equal(text[:, :9], tokens)
    fast, products = compiled(model.forward)
    assert close(fast(input_ids=tokens).logits, logits(model, tokens))
    assert products == [14]


def test_a_base_model_and_biases(tmp_path, tokens):
    """Of a folder with a head, and layers with biases."""
    from transformers import AutoModel

    model = tiny_llama(attention_bias=True, tie_word_embeddings=False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "dense")
    whole = loaded(tmp_path / "dense", quantization_config=CodegemmConfig(CONFIG, time_limit=0))
    for name, layer in quantised(whole).items():
        bias = model.get_submodule(name).bias
        assert (layer.bias is None) == (bias is None)
        assert bias is None or torch.equal(layer.bias, bias)
    whole.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        expected = whole.model(tokens).last_hidden_state
        base = AutoModel.from_pretrained(tmp_path / "saved")
        assert torch.equal(base(tokens).last_hidden_state, expected)
        made = AutoModel.from_pretrained(tmp_path / "dense", quantization_config=CodegemmConfig(CONFIG, time_limit=0))
        assert torch.equal(made(tokens).last_hidden_state, expected)


@pytest.mark.parametrize("first", ["LlamaModel", "LlamaForCausalLM"])
def test_a_base_model_is_named_otherwise(tmp_path, tokens, first):
    """Its layers, and those that are dense, have no `model.` before their names: saved with it and loaded without, and
    the other way round."""
    second = {"LlamaModel": "LlamaForCausalLM", "LlamaForCausalLM": "LlamaModel"}[first]
    begin = "model." if first == "LlamaForCausalLM" else ""
    tiny_llama().save_pretrained(tmp_path / "dense")
    config = CodegemmConfig(
        CONFIG, {f"{begin}layers.0.mlp.up_proj": "m2v4b3g16"}, [f"{begin}layers.1.self_attn"], time_limit=0
    )
    one = getattr(transformers, first).from_pretrained(tmp_path / "dense", quantization_config=config)
    one.save_pretrained(tmp_path / "saved")
    other = getattr(transformers, second).from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        expected = one(tokens, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(other(tokens, output_hidden_states=True).hidden_states[-1], expected)
    assert len(quantised(other)) == 10


def test_what_codegemm_sees(dense, tmp_path, invoke):
    """`load_all` and `info`."""
    model = loaded(dense, quantization_config=CodegemmConfig(CONFIG, time_limit=0))
    model.save_pretrained(tmp_path / "saved", max_shard_size="4KB")
    weights = codegemm.load_all(tmp_path / "saved")
    assert weights == {name: layer.to_weight() for name, layer in quantised(model).items()}
    done = invoke("info", tmp_path / "saved")
    assert done.exit_code == 0
    assert "model.layers.1.mlp.down_proj" in done.stdout
    assert "14 weights" in done.stdout


def test_without_descriptions_in_the_files(dense, tmp_path, tokens):
    """As other tools write them: config.json says enough."""
    first = loaded(dense, quantization_config=CodegemmConfig(CONFIG, time_limit=0))
    first.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    save_file(load_file(path), path, {"format": "pt"})
    second = loaded(tmp_path / "saved")
    assert torch.equal(logits(second, tokens), logits(first, tokens))
    second.save_pretrained(tmp_path / "again")
    assert codegemm.load_all(tmp_path / "again").keys() == quantised(first).keys()


def test_names_that_the_caller_maps(dense, tmp_path, tokens):
    """`key_mapping` counts when the files are looked at."""
    first = loaded(dense, quantization_config=CodegemmConfig(CONFIG, time_limit=0))
    first.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    held = {name.replace("self_attn", "attention"): tensor for name, tensor in load_file(path).items()}
    save_file(held, path, {"format": "pt"})
    with pytest.raises(codegemm.CheckpointError, match=r"missing: model\.layers\.0\.self_attn\.q_proj\.codes"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    second = loaded(tmp_path / "saved", key_mapping={r"\.attention\.": ".self_attn."})
    assert torch.equal(logits(second, tokens), logits(first, tokens))


@pytest.mark.parametrize("tied", [True, False])
def test_what_codegemm_quantize_writes(tied, tmp_path, tokens, invoke):
    """The same weights and the same entry as loading quantises and saves, down_proj with a group size of its own."""
    tiny_llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "dense", max_shard_size="30KB")
    done = invoke("quantize", tmp_path / "dense", tmp_path / "made", "--config", CONFIG)
    assert done.exit_code == 0
    model = loaded(tmp_path / "made")
    weights = codegemm.load_all(tmp_path / "made")
    assert {name: layer.to_weight() for name, layer in quantised(model).items()} == weights
    expected = logits(model, tokens)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(loaded(tmp_path / "saved"), tokens), expected)
    loaded(tmp_path / "dense", quantization_config=CodegemmConfig(CONFIG)).save_pretrained(tmp_path / "other")
    assert codegemm.load_all(tmp_path / "other") == weights
    assert {weight.spec.name for weight in weights.values()} == {"m1v4b4g-1", "m1v4b4g24"}  # of rows of 32 and 48
    layers = {f"model.layers.{i}.mlp.down_proj": "m1v4b4g24" for i in range(2)}
    assert entry(tmp_path / "made")["layers"] == entry(tmp_path / "other")["layers"] == layers
