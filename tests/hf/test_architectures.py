"""Models of other kinds than Llama: all of their linear layers are quantised, and they are saved and loaded."""

import pytest
import torch
import transformers
from emulator.cases import some
from support.layers import check_state
from support.models import close, loaded, quantised

import codegemm
from codegemm.hf import CodegemmConfig

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 61,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
BERT = {name: SIZES[name] for name in SIZES if name != "num_key_value_heads"}
SIGHT = {"hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "depth": 2, "out_hidden_size": 32}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8}
GROUPS = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
BART = {
    "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64, "vocab_size": 61,
}  # fmt: skip

T5 = {
    "vocab_size": 61, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip


def qwen3_vl():
    text = {**SIZES, **EXPERTS, "head_dim": 8, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    sight = {**SIGHT, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    return transformers.Qwen3VLMoeConfig(text_config=text, vision_config=sight)


# By name: the configuration, the class, how many matrices are quantised, and which linear layers stay dense.
MODELS = {
    "T5": (
        lambda: transformers.T5Config(**T5),
        "T5ForConditionalGeneration", 28, {"lm_head", "wo"},
    ),
    "fused": (lambda: transformers.Phi3Config(**SIZES, pad_token_id=0), "Phi3ForCausalLM", 8, {"lm_head"}),
    "latent attention": (
        lambda: transformers.DeepseekV3Config(**{**SIZES, "num_key_value_heads": 4, **EXPERTS, **LATENT, **GROUPS}),
        "DeepseekV3ForCausalLM", 28, {"lm_head"},
    ),
    "sights": (qwen3_vl, "Qwen3VLMoeForConditionalGeneration", 44, {"lm_head"}),
    "biases": (lambda: transformers.Qwen2Config(**SIZES), "Qwen2ForCausalLM", 14, {"lm_head"}),
    "encoder": (lambda: transformers.BertConfig(**BERT), "BertModel", 13, set()),
    "encoder and decoder": (lambda: transformers.BartConfig(**BART), "BartForConditionalGeneration", 16, {"lm_head"}),
    "beginnings of layers inside": (
        lambda: transformers.Mamba2Config(
            vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=8, n_groups=1
        ),
        "Mamba2ForCausalLM", 4, {"lm_head"},
    ),
    "experts without a gate": (
        lambda: transformers.NemotronHConfig(vocab_size=61, hidden_size=32, intermediate_size=64),
        "NemotronHForCausalLM", 26, {"lm_head"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", some([*MODELS], 3))
def test_whole(kind, tmp_path, rng):
    config, name, count, dense = MODELS[kind]
    cls, tokens = getattr(transformers, name), torch.from_numpy(rng.integers(3, 61, (1, 6)))
    cls(config()).save_pretrained(tmp_path / "dense")

    def output(model):
        inputs = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
        with torch.no_grad():
            return model(input_ids=tokens, **inputs)[0]

    model = loaded(tmp_path / "dense", cls, quantization_config=CodegemmConfig("m1v4b4g32", time_limit=0))
    linear = {name.rpartition(".")[2] for name, each in model.named_modules() if type(each) is torch.nn.Linear}
    assert (len(quantised(model)), linear) == (count, dense)
    expected = output(model)
    model.save_pretrained(tmp_path / "saved")
    again = loaded(tmp_path / "saved", cls)
    check_state(again.state_dict(), model.state_dict())
    assert torch.equal(output(again), expected)
    assert len(codegemm.load_all(tmp_path / "saved")) == count
    assert close(output(again.dequantize()), expected, 1e-3)


def test_a_new_head_is_not_quantised(tmp_path, rng):
    """It has no weights yet, and is saved as it is."""
    config = transformers.Qwen2Config(**SIZES, num_labels=64, pad_token_id=0)
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path / "dense")
    cls, asked = transformers.Qwen2ForSequenceClassification, CodegemmConfig("m1v4b4g32", time_limit=0)
    model = cls.from_pretrained(tmp_path / "dense", quantization_config=asked, num_labels=64)
    assert type(model.score) is torch.nn.Linear
    model.save_pretrained(tmp_path / "saved")
    again, told = cls.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(told.values())
    tokens = torch.from_numpy(rng.integers(3, 61, (2, 6)))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
