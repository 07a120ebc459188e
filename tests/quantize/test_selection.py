"""Which matrices are left alone unless they are named: by the names that models give them."""

import pytest

from codegemm.quantize.selection import Selection, spared

LAYERS = [
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.gate_up_proj.weight",
    "model.layers.0.mlp.experts.7.gate_proj.weight",
    "model.layers.0.mlp.shared_expert.gate_proj.weight",
    "model.layers.0.block_sparse_moe.experts.3.w1.weight",
    "model.layers.31.mlp.down_proj.weight",
    "encoder.layer.0.attention.output.dense.weight",
    "encoder.layer.0.output.dense.weight",
    "encoder.layer.0.intermediate.dense.weight",
    "pooler.dense.weight",
    "transformer.h.0.attn.c_attn.weight",
    "transformer.h.0.mlp.c_fc.weight",
    "gpt_neox.layers.0.attention.query_key_value.weight",
    "decoder.block.0.layer.1.EncDecAttention.q.weight",
    "blocks.0.att.output.weight",
    "backbone.layers.0.mixer.in_proj.weight",
    "layers.0.feed_forward.w2.weight",
    "a.weight",
    "a",
]

SPARED = {
    "an embedding": """
        model.embed_tokens.weight
        model.decoder.embed_positions.weight
        model.language_model.embed_tokens.weight
        model.embed_tokens_per_layer.weight
        transformer.wte.weight
        transformer.wpe.weight
        wte.weight
        transformer.embd.wte.weight
        transformer.word_embeddings.weight
        bert.embeddings.word_embeddings.weight
        embeddings.position_embeddings.weight
        embeddings.token_type_embeddings.weight
        gpt_neox.embed_in.weight
        tok_embeddings.weight
        backbone.embedding.weight
        backbone.embeddings.weight
        shared.weight
        encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight
    """,
    "an output head": """
        lm_head.weight
        language_model.lm_head.weight
        lm_head.linear.weight
        embed_out.weight
        output.weight
        head.weight
        transformer.output_layer.weight
        cls.predictions.decoder.weight
        proj_out.weight
    """,
    "a router of experts": """
        model.layers.0.block_sparse_moe.gate.weight
        model.layers.0.mlp.gate.weight
        model.layers.0.mlp.shared_expert_gate.weight
        model.layers.0.mlp.router.weight
        model.layers.0.feed_forward.router.weight
        model.layers.0.block_sparse_moe.router.layer.weight
        encoder.block.1.layer.1.mlp.router.classifier.weight
        model.layers.0.mlp.gate.wg.weight
    """,
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_taken(name):
    assert spared(name) is None


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, text in SPARED.items() for name in text.split()])
def test_what_is_no_layer_is_spared_unless_it_is_named(kind, name):
    assert Selection().spares(name) == kind
    assert Selection().wants(name)
    assert Selection(exclude="x").spares(name) == kind
    assert Selection(include=".*").spares(name) is None


def test_expressions_are_of_whole_names():
    assert not Selection().wants("a.bias")
    assert not Selection().wants("a.weight.scale")
    assert Selection(include="a.*").wants("a.bias")
    assert not Selection(include="a").wants("a.bias")
    assert not Selection(exclude="a.*").wants("a.weight")
    assert Selection(exclude="a").wants("a.weight")
    assert not Selection(include="").wants("a")
