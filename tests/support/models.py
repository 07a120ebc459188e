"""Small models, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from codegemm.torch.replace import quantized_layers as quantised

__all__ = ["close", "compiled", "loaded", "logits", "quantised", "tiny_llama"]


def tiny_llama(layers: int = 2, **changes: Any) -> Any:
    """A LlamaForCausalLM whose heads share keys and values, for text of 61 different tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,  # so that every layer tells in the logits
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def loaded(folder: Any, kind: Any = None, **options: Any) -> Any:
    """A model of a class, usually AutoModelForCausalLM: nothing is missing, unexpected or of another shape."""
    import transformers

    kind = kind or transformers.AutoModelForCausalLM
    model, told = kind.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(told.values()), told
    return model


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Of text."""
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits
    return found


def close(y: torch.Tensor, truth: torch.Tensor, tolerance: float = 4e-4) -> bool:
    """Of the same shape and dtype, and not further away than `tolerance` of the norm: as two kernels may be."""
    same = y.shape == truth.shape and y.dtype == truth.dtype
    return same and bool((y - truth).norm() <= tolerance * truth.norm())


def compiled(function: Callable[..., Any], backend: str = "eager") -> tuple[Callable[..., Any], list[int]]:
    """Of a function or module in one graph; and for each graph that was made the number of products in it."""
    products: list[int] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        products.append(sum(node.target is torch.ops.codegemm.linear.default for node in graph.graph.nodes))
        made: Callable[..., Any] = torch._dynamo.lookup_backend(backend)(graph, inputs)
        return made

    torch._dynamo.reset()
    return torch.compile(function, backend=counting, fullgraph=True), products
