"""The trained model that other tests take: it is what its package holds, and it talks."""

import numpy as np
import pytest
from emulator.cases import ALL
from support import smollm2 as source

from codegemm.shards import open_model

torch = pytest.importorskip("torch")


@pytest.mark.skipif(not ALL, reason="takes seconds, and the tests below see it, too")
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


@pytest.mark.skipif(not ALL, reason="takes seconds, and the tests below see it, too")
def test_it_talks(smollm2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    question = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**question, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(answer[0]).startswith("The capital of France is Paris")


def prompt(tokenizer):
    return tokenizer("The capital of France is", return_tensors="pt")


def test_quantised_in_part(smollm2, tmp_path):
    """One block, of four bits: it still knows, from its files, too."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import codegemm
    from codegemm.hf import CodegemmConfig

    others = [r"model\.layers\.(?!17\b)\d+"]
    config = CodegemmConfig("m2v4g128", modules_to_not_convert=others, time_limit=0)
    model = AutoModelForCausalLM.from_pretrained(smollm2, quantization_config=config)
    model.save_pretrained(tmp_path)
    weights = codegemm.load_all(tmp_path)
    assert {weight.spec.name for weight in weights.values()} == {"m2v4g96", "m2v4g128"}  # 576 inputs, and 1536
    assert len(weights) == 7
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for each in (model, again):
        answer = each.generate(**prompt(tokenizer), max_new_tokens=2, do_sample=False)
        assert tokenizer.decode(answer[0]).startswith("The capital of France is Paris")


@pytest.mark.skipif(not ALL, reason="takes half a minute")
def test_quantised_whole(smollm2, tmp_path):
    """In four bits, every layer: near enough to say the same."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from codegemm.hf import CodegemmConfig

    config = CodegemmConfig("m1v1b4g32", time_limit=0)
    model = AutoModelForCausalLM.from_pretrained(smollm2, quantization_config=config)
    model.save_pretrained(tmp_path, max_shard_size="20MB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    question = prompt(tokenizer)
    with torch.no_grad():
        assert torch.equal(again(**question).logits, model(**question).logits)
    answer = again.generate(**question, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(answer[0]).startswith("The capital of France is Paris")
