"""The trained model that other tests take: it is what its package holds, and it talks."""

import numpy as np
import pytest
from support import smollm2 as source

from codegemm.shards import open_model

torch = pytest.importorskip("torch")


def test_it_is_the_packages_model_rounded(smollm2):
    from gguf import GGUFReader
    from gguf.quants import dequantize

    found = {tensor.name: tensor for tensor in GGUFReader(source.gguf_file()).tensors}
    held = open_model(smollm2).tensors
    for theirs, ours in (
        ("token_embd", "model.embed_tokens"),
        ("blk.0.ffn_down", "model.layers.0.mlp.down_proj"),
        ("blk.29.attn_v", "model.layers.29.self_attn.v_proj"),
        ("output_norm", "model.norm"),
    ):
        one = found[f"{theirs}.weight"]
        exact = dequantize(one.data, one.tensor_type)
        assert np.array_equal(held[f"{ours}.weight"].numpy(), exact.astype(np.float16))
        assert np.linalg.norm(exact - exact.astype(np.float16)) <= 3e-4 * np.linalg.norm(exact)


def test_it_talks(smollm2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    question = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**question, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(answer[0]).startswith("The capital of France is Paris")
