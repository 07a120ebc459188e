"""Bytes of a model's weights, beside what they would be in half precision."""

from __future__ import annotations

from typing import Any, NamedTuple

from codegemm.formats.format import spec_of
from codegemm.hf.planned import PlannedLinear
from codegemm.torch import CodebookLinear


class Sizes(NamedTuple):
    """Bytes of all weights: as they are, and in float16."""

    held: int
    half: int


def sizes(model: Any) -> Sizes:
    """Of a model: quantised matrices by the bytes of their packed weights, everything else, once, by its tensors."""
    layers = [module for module in model.modules() if isinstance(module, (CodebookLinear, PlannedLinear))]
    # Not of the weights themselves: of fused layers they would be made anew, and kept.
    specs = [spec_of((layer.out_features, layer.in_features), layer.config) for layer in layers]
    codes = {id(tensor) for layer in layers for tensor in layer.tensors()}
    others = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in codes]
    return Sizes(
        sum(-(-spec.packed_bits // 8) for spec in specs) + sum(tensor.nbytes for tensor in others),
        2 * (sum(spec.out_features * spec.in_features for spec in specs) + sum(tensor.numel() for tensor in others)),
    )


def cache_bytes(config: Any, positions: int, batch: int, itemsize: int) -> int:
    """Keys and values of a cache for a model of this configuration."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * positions * batch * itemsize)


def gpu_peak() -> int:
    """Bytes that torch had allocated on the GPU at most, with those of CuPy's pool, where kernels hold codes."""
    import cupy
    import torch

    return int(torch.cuda.max_memory_allocated()) + int(cupy.get_default_memory_pool().total_bytes())
