"""A converted folder holds the model that transformers and AQLM's own code make of its source."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import codegemm
from codegemm.checkpoints import convert_folder

torch = pytest.importorskip("torch")
pytest.importorskip("aqlm")

from support.models import tiny_llama  # noqa: E402


def quantise(folder, rng):
    """Put random weights in AQLM's 1x16, which its code multiplies by on a CPU, in place of a model's projections."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name.removesuffix(".weight") for name in tensors if name.endswith("proj.weight")]:
        rows, columns = tensors.pop(f"{name}.weight").shape
        tensors[f"{name}.codes"] = rng.integers(-(1 << 15), 1 << 15, (rows, columns // 8, 1)).astype(np.int16)
        tensors[f"{name}.codebooks"] = (0.2 * rng.standard_normal((1, 1 << 16, 1, 8))).astype(np.float16)
        tensors[f"{name}.scales"] = rng.uniform(0.5, 2, (rows, 1, 1, 1)).astype(np.float16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = {"in_group_size": 8, "out_group_size": 1, "num_codebooks": 1, "nbits_per_codebook": 16}
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
    assert (logits - expected).norm() <= 1e-5 * expected.norm()
