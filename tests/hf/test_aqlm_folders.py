"""A converted folder holds the model that transformers and AQLM's own code make of its source."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import codegemm
from codegemm.checkpoints import convert_folder

torch = pytest.importorskip("torch")
pytest.importorskip("aqlm")

from support.models import close, quantised, tiny_llama  # noqa: E402


def quantise(folder, rng, m=1, b=16, floats=np.float16):
    """Put random weights in AQLM's layout in place of a model's projections; 1x16 its code multiplies by on a CPU."""
    tensors, integers = load_file(folder / "model.safetensors"), np.int8 if b <= 8 else np.int16
    for name in [name.removesuffix(".weight") for name in tensors if name.endswith("proj.weight")]:
        rows, columns = tensors.pop(f"{name}.weight").shape
        tensors[f"{name}.codes"] = rng.integers(-1 << b - 1, 1 << b - 1, (rows, columns // 8, m)).astype(integers)
        tensors[f"{name}.codebooks"] = (0.05 * rng.standard_normal((m, 1 << b, 1, 8))).astype(floats)
        tensors[f"{name}.scales"] = rng.uniform(0.5, 2, (rows, 1, 1, 1)).astype(floats)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = {"in_group_size": 8, "out_group_size": 1, "num_codebooks": m, "nbits_per_codebook": b}
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "aqlm", "linear_weights_not_to_quantize": ["lm_head"], **said}
    (folder / "config.json").write_text(json.dumps(config))


def test_the_same_logits(tmp_path, rng):
    from transformers import AutoModelForCausalLM

    model = tiny_llama()
    model.save_pretrained(tmp_path / "aqlm")
    quantise(tmp_path / "aqlm", rng)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "aqlm", dtype=torch.float32)
    assert type(theirs.model.layers[1].mlp.up_proj).__module__ == "aqlm.inference"

    convert_folder(tmp_path / "aqlm", tmp_path / "ours")
    weights = codegemm.load_all(tmp_path / "ours")
    assert len(weights) == 14
    dense = {f"{name}.weight": torch.from_numpy(one.dequantize(np.float32)) for name, one in weights.items()}
    model.load_state_dict(model.state_dict() | dense)
    tokens = torch.from_numpy(rng.integers(0, 61, (2, 20)))
    with torch.no_grad():
        expected, logits = theirs(tokens).logits, model(tokens).logits
        ours = codegemm.AutoModelForCausalLM.from_pretrained(tmp_path / "aqlm", dtype=torch.float32)
        assert (logits - expected).norm() <= 1e-5 * expected.norm()
        assert close(ours(tokens).logits, expected)


@pytest.mark.parametrize(("m", "b", "floats"), [(2, 8, np.float16), (1, 16, np.float16), (3, 6, ml_dtypes.bfloat16)])
def test_loaded_as_it_is(tmp_path, rng, m, b, floats):
    """Into the same layers as the converted folder, and saved in our own form."""
    model = tiny_llama(attention_bias=True)
    torch.nn.init.normal_(model.model.layers[0].self_attn.q_proj.bias)
    model.save_pretrained(tmp_path / "aqlm")
    quantise(tmp_path / "aqlm", rng, m, b, floats)
    convert_folder(tmp_path / "aqlm", tmp_path / "converted")
    tokens = torch.from_numpy(rng.integers(0, 61, (2, 20)))
    ours, told = codegemm.AutoModelForCausalLM.from_pretrained(tmp_path / "aqlm", output_loading_info=True)
    assert not any(told.values())
    converted = codegemm.AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    ours.save_pretrained(tmp_path / "saved")
    saved = codegemm.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    weights = codegemm.load_all(tmp_path / "converted")
    for each in (ours, converted, saved):
        assert {name: layer.to_weight() for name, layer in quantised(each).items()} == weights
        with torch.no_grad():
            assert torch.equal(each(tokens).logits, ours(tokens).logits)
    assert codegemm.load_all(tmp_path / "saved") == weights
    entries = [
        json.loads((tmp_path / name / "config.json").read_text())["quantization_config"]
        for name in ("saved", "converted")
    ]
    assert entries[0] == entries[1]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"out_group_size": 2}, r"config\.json: quantization_config: out_group_size 2, must be 1"),
        ({"num_codebooks": 2}, r"_proj\.codebooks: shape \(1, 65536, 1, 8\), must be \(2, 65536, 1, 8\)"),
        ({"linear_weights_not_to_quantize": []}, r"missing: lm_head\.codes"),
    ],
)
def test_what_is_refused(tmp_path, rng, said, message):
    tiny_llama().save_pretrained(tmp_path)
    quantise(tmp_path, rng)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] |= said
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(codegemm.CheckpointError, match=message):
        codegemm.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_numbers_that_will_not_do(tmp_path, rng):
    """They are seen when the layers are made."""
    tiny_llama().save_pretrained(tmp_path)
    quantise(tmp_path, rng)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.scales"][3] = np.nan
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(codegemm.CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj: scales"):
        codegemm.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_options(tmp_path, rng):
    """Those of the configuration among them, or a configuration that is at hand."""
    from transformers import AutoConfig

    tiny_llama().save_pretrained(tmp_path)
    quantise(tmp_path, rng, 2, 8)
    load = codegemm.AutoModelForCausalLM.from_pretrained
    model = load(
        tmp_path, dtype="auto", attn_implementation="eager", max_position_embeddings=99, output_hidden_states=True
    )
    said = model.config
    assert (said.max_position_embeddings, said.output_hidden_states, said._attn_implementation) == (99, True, "eager")
    assert model.dtype == torch.float32
    assert load(tmp_path, dtype=torch.float16).dtype == torch.float16
    config = AutoConfig.from_pretrained(tmp_path)
    assert quantised(load(tmp_path, config=config)).keys() == quantised(model).keys()
    assert config.quantization_config["quant_method"] == "aqlm"


def test_offloaded_layers(tmp_path, rng):
    """Wherever transformers decides that itself."""
    tiny_llama().save_pretrained(tmp_path)
    quantise(tmp_path, rng, 2, 8)
    with pytest.raises(ValueError, match=r"_proj: is on disk; convert an AQLM model first"):
        codegemm.AutoModelForCausalLM.from_pretrained(
            tmp_path, device_map="auto", max_memory={"cpu": 20_000}, offload_folder=tmp_path / "offloaded"
        )
