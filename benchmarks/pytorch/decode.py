"""A Llama that decodes a token at a time, one row of x: its linear layers alone, and all but its head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.pytorch.rounds import Call, Seconds, run
from codegemm.formats import random_weight
from codegemm.torch import FUSED, replace_linear

CONFIGS = ("m1v4g128", "m2v8g128")
FULL_SIZE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16}
QUICK = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
VOCABULARY, CACHED = 32_000, 64
FLOAT32, BFLOAT16 = "torch float32", "torch bfloat16"
_TOKENS = 8  # of a call
Fused = tuple[tuple[str, ...], ...]


@dataclass
class Decoded:
    """Seconds of a token by what multiplies: of the linear layers alone, and of the model without its head."""

    layers: Seconds
    models: Seconds


def measure(sizes: dict[str, int], rounds: int) -> Decoded:
    """With random weights."""
    models = {name: make(sizes) for name, make in _makers().items()}
    with torch.inference_mode():
        layers = run({name: _layers(model) for name, model in models.items()}, rounds, 1)
        tokens = run({name: _tokens(model) for name, model in models.items()}, rounds, 1)
    return Decoded(layers, {name: [each / _TOKENS for each in seconds] for name, seconds in tokens.items()})


def _makers() -> dict[str, Callable[[dict[str, int]], Any]]:
    """What makes each model, by what is told of it."""
    makers: dict[str, Callable[[dict[str, int]], Any]] = {
        FLOAT32: _dense,
        BFLOAT16: lambda sizes: _dense(sizes).to(torch.bfloat16),
    }
    for config in CONFIGS:
        makers[config] = lambda sizes, config=config: _quantised(sizes, config)
        makers[f"{config}, fused"] = lambda sizes, config=config: _quantised(sizes, config, FUSED)
        makers[f"{config}, fused, fast"] = lambda sizes, config=config: _quantised(sizes, config, FUSED, "fast")
    return makers


def _dense(sizes: dict[str, int]) -> Any:
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=CACHED, **sizes)
    return LlamaModel(config).eval().requires_grad_(False)


def _quantised(sizes: dict[str, int], config: str, fuse: Fused = (), precision: str = "full") -> Any:
    model = _dense(sizes)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    shapes = {name: tuple(module.weight.shape) for name, module in linear.items()}
    weights = {name: random_weight(shape, config, i) for i, (name, shape) in enumerate(shapes.items())}
    replace_linear(model, weights, fuse=fuse, precision=precision)
    return model


def _layers(model: Any) -> Call:
    """All linear layers, in the order and with as many inputs as a token has."""
    hidden, inner, dtype = model.config.hidden_size, model.config.intermediate_size, model.dtype
    h, attended, mixed, act = (torch.randn(1, 1, n).to(dtype) for n in (hidden, hidden, hidden, inner))

    def call() -> None:
        for block in model.layers:
            attention, mlp = block.self_attn, block.mlp
            attention.q_proj(h), attention.k_proj(h), attention.v_proj(h)
            attention.o_proj(attended)
            mlp.gate_proj(mixed), mlp.up_proj(mixed)
            mlp.down_proj(act)

    return call


def _tokens(model: Any) -> Call:
    """Some tokens, one after the other, with a static cache."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=CACHED)
    ids = torch.randint(VOCABULARY, (_TOKENS, 1, 1))

    def call() -> None:
        cache.reset()
        for token in ids:
            model(input_ids=token, cache=cache, use_cache=True)

    return call
