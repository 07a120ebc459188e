"""Llama-3.1 with random weights, made on the device block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_ALIKE = {
    "vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "bos_token_id": 128000, "eos_token_id": 128001, "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
_SIZES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
NAMES = tuple(_SIZES)
_WORDS = 256  # of a block by itself, so that its time is not the head's
Made = Callable[[tuple[int, int], int], torch.nn.Module]
Finish = Callable[[torch.nn.Module], None]


def leave(block: torch.nn.Module) -> None:
    """A block as it is."""


def whole(name: str) -> Any:
    """The configuration of Llama-3.1-8B or 70B."""
    from transformers import LlamaConfig

    return LlamaConfig(**_ALIKE, **_SIZES[name])


def one_block(name: str) -> Any:
    """The same of one of its blocks, between an embedding and a head of hardly any tokens."""
    config = whole(name)
    config.num_hidden_layers, config.vocab_size = 1, _WORDS
    config.bos_token_id = config.eos_token_id = None
    return config


def linear_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of the linear layers of a block, by name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * config.head_dim
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def others(config: Any) -> int:
    """Numbers of a model beside those of its blocks' linear layers: embedding, head, norms."""
    matrices = 1 if config.tie_word_embeddings else 2
    norms = 2 * config.num_hidden_layers + 1
    return int((matrices * config.vocab_size + norms) * config.hidden_size)


def random_model(config: Any, device: torch.device, dtype: torch.dtype, made: Made, finish: Finish = leave) -> Any:
    """A model whose blocks have the linear layers that `made` gives for a shape and a number, another for each; then
    `finish` is told each block.

    Such layers are to have numbers of variance 1; norms make their inputs as small as halves need it.
    """
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    shapes = linear_shapes(config)
    for number, block in enumerate(model.model.layers):
        for place, (name, shape) in enumerate(shapes.items()):
            parent, _, own = name.rpartition(".")
            setattr(block.get_submodule(parent), own, made(shape, number * len(shapes) + place))
        finish(block)
    generator = torch.Generator(device).manual_seed(0)
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None and tensor.is_meta:
                filled = torch.empty(tensor.shape, dtype=dtype, device=device)
                if tensor.ndim == 1:
                    filled.fill_(config.hidden_size**-0.5)
                else:
                    filled.normal_(std=0.02, generator=generator)
                setattr(module, name, torch.nn.Parameter(filled, requires_grad=False))
    return model.eval()
