"""What can't be loaded or quantised is named before anything is loaded."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import quantised, tiny_llama
from transformers import AutoModelForCausalLM

import codegemm
from codegemm.hf import CodegemmConfig, quantizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A quantised model's folder, not to be written to."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tiny_llama().save_pretrained(folder / "dense")
    model = AutoModelForCausalLM.from_pretrained(folder / "dense", quantization_config=CodegemmConfig("m1v4b4g32"))
    model.save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.fixture
def broken(saved, tmp_path):
    """What makes a folder of the same model with other tensors or another entry in config.json."""

    def make(change=None, **said):
        config, tensors = json.loads((saved / "config.json").read_text()), load_file(saved / "model.safetensors")
        config["quantization_config"] |= said
        for key in [key for key, value in said.items() if value is None]:
            del config["quantization_config"][key]
        if change is not None:
            change(tensors)
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        return tmp_path

    return make


KEY = "model.layers.1.mlp.up_proj"


def set_to(name, make):
    return lambda tensors: tensors.update({name: make(tensors[name])})


@pytest.mark.parametrize(
    ("change", "message"),
    [  # of 48 x 32
        (lambda held: held.pop(f"{KEY}.scales"), rf"1 missing: {KEY}\.scales"),
        (lambda held: [held.pop(name) for name in list(held) if "layers.0" in name], r"21 missing: .*, \.\.\."),
        (set_to(f"{KEY}.codes", lambda t: t[1:].clone()), rf"{KEY}\.codes: shape \(47, 4\), must be \(48, 4\)"),
        (set_to(f"{KEY}.codes", lambda t: t.half()), rf"{KEY}\.codes: dtype F16, must be torch\.uint8"),
        (set_to(f"{KEY}.codebooks", lambda t: t[:, :, :2].clone()), r"shape \(1, 16, 2\), must be \(1, 16, 4\)"),
        (set_to(f"{KEY}.scales", lambda t: t.to(torch.int16)), r"scales: dtype I16, must be torch\.float16"),
    ],
)  # fmt: skip
def test_files(broken, change, message):
    with pytest.raises(codegemm.CheckpointError, match=message):
        AutoModelForCausalLM.from_pretrained(broken(change))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"version": 2}, "version 2, this package reads 1"),
        ({"version": "1"}, "version '1', this package reads 1"),
        ({"version": None}, "has no 'version'"),
        ({"config": None}, "has no 'config'"),
        ({"config": "m1v4q7"}, "configuration 'm1v4q7'"),
        ({"layers": {KEY: "nothing"}}, f"layers: {KEY}: configuration 'nothing'"),
        ({"layers": [KEY]}, "layers: .* must be configurations"),
        ({"modules_to_not_convert": 7}, "modules_to_not_convert: 7, must be a list"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert: 'lm_head', must be a list"),
        ({"config": "m1v8b4g32"}, r"_proj\.codebooks: shape \(1, 16, 4\), must be \(1, 16, 8\)"),
        ({"modules_to_not_convert": ["model", "lm_head"]}, "leaves no linear layer"),
        ({"modules_to_not_convert": []}, r"3 missing: lm_head\.codes"),
    ],
)
def test_entries(broken, said, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AutoModelForCausalLM.from_pretrained(broken(**said))


def test_layers_that_are_quantised_but_said_to_be_dense(broken):
    """They would begin with random numbers."""
    with pytest.raises(codegemm.CheckpointError, match=r"up_proj\.\w+: config\.json says of its layer that it is not"):
        AutoModelForCausalLM.from_pretrained(broken(modules_to_not_convert=["lm_head", "up_proj"]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("m1v4b4g32+rotated16", r"_proj\.\w+: block 32, not 16 as of m1v4b4g-1\+rotated16, which config\.json says"),
        ("m1v4b4g32", r"_proj\.signs: no tensor of the layer as config\.json says it is quantised"),
    ],
)
def test_other_weights_of_the_same_shapes(tmp_path, config, message):
    """They would multiply to something else."""
    tiny_llama().save_pretrained(tmp_path / "dense")
    asked = CodegemmConfig("m1v4b4g32+rotated", time_limit=0)
    AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=asked).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    said["quantization_config"] |= {"config": config, "layers": {"*.down_proj": config.replace("g32", "g24")}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(codegemm.CheckpointError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_ends_of_names_do_not_count(broken, saved):
    """In a list that a model was saved with."""
    model = AutoModelForCausalLM.from_pretrained(
        broken(modules_to_not_convert=["lm_head", "k_proj.x", "_proj", "proj"])
    )
    assert len(quantised(model)) == 14


def test_other_keys_are_left_alone(broken):
    model = AutoModelForCausalLM.from_pretrained(broken(made_by="somebody"))
    assert len(quantised(model)) == 14


def test_values_that_can_not_be(broken):
    def spoil(tensors):
        tensors[f"{KEY}.codebooks"][0, 3] = torch.nan

    with pytest.raises(ValueError, match=f"{KEY}: codebooks"):
        AutoModelForCausalLM.from_pretrained(broken(spoil))


def test_a_pickle(saved, tmp_path):
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    torch.save(load_file(saved / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(codegemm.CheckpointError, match=r"pytorch_model\.bin: must be a safetensors file"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_an_incomplete_state_dict(saved):
    from transformers import AutoConfig, LlamaForCausalLM

    state = load_file(saved / "model.safetensors")
    config = AutoConfig.from_pretrained(saved)
    del state[f"{KEY}.scales"]
    with pytest.raises(codegemm.CheckpointError, match=rf"{KEY}\.scales: missing"):
        LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            "m1v4b4g32",
            {"layers": {"model.layers.7.mlp.up_proj": "e8p"}},
            r"'model\.layers\.7\.mlp\.up_proj' is the name of no",
        ),
        ("m1v4b4g32", {"modules_to_not_convert": ["model.layers.9"]}, "'model.layers.9' fits no module"),
        (
            "m1v4b4g32",
            {"modules_to_not_convert": ["model.layers.(0"]},
            r"modules_to_not_convert: 'model\.layers\.\(0': ",
        ),
        ("m1v4b4g32", {"modules_to_not_convert": ["proj"]}, "nothing to quantise"),
        ("m1v5b4g-1", {}, r"_proj: in_features=32: must be a multiple of the vector length v=5"),
        ("m1v4b4g32", {"layers": {"lm_head": "m1v4b4g16"}}, "lm_head shares its weight"),
    ],
)
def test_plans(tmp_path, config, options, message):
    tiny_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=CodegemmConfig(config, **options))


def test_a_matrix_that_is_not_finite(tmp_path, monkeypatch, caplog):
    """What comes after it is not quantised."""
    model = tiny_llama()
    model.model.layers[0].self_attn.q_proj.weight.data[3, 4] = torch.inf
    model.save_pretrained(tmp_path)
    tried, quantize = [], quantizer.quantize
    monkeypatch.setattr(
        quantizer, "quantize", lambda *given, **options: tried.append(given) or quantize(*given, **options)
    )
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=CodegemmConfig("m1v4b4g32"))
    assert "model.layers.0.self_attn.q_proj: W: inf at [3, 4], must be finite" in caplog.text
    assert len(tried) < 14


def test_no_quantiser():
    class Mine(codegemm.CodebookConfig):
        pass

    with pytest.raises((TypeError, ValueError)):
        CodegemmConfig(object())


def test_a_head_is_quantised_where_it_is_named(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    config = CodegemmConfig("m1v4b4g32", {"lm_head": "m2v4b4g32"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert quantised(model)["lm_head"].config == "m2v4b4g-1"
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert quantised(again)["lm_head"].to_weight() == quantised(model)["lm_head"].to_weight()


def test_registered_once():
    """A second import finds its own."""
    import importlib

    import codegemm.hf

    importlib.reload(codegemm.hf)
