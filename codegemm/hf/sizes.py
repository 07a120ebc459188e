"""Bytes of a model's weights, beside what they would be in half precision."""

from __future__ import annotations

from typing import Any, NamedTuple


class Sizes(NamedTuple):
    """Bytes of all weights: as they are, and in float16."""

    held: int
    half: int

    @property
    def times_smaller(self) -> float:
        """Than in float16."""
        return self.half / self.held


def sizes(model: Any) -> Sizes:
    """Of a model: quantised matrices by the bytes of their packed weights, everything else, once, by its tensors."""
    layers = [module for module in model.modules() if hasattr(module, "to_weight")]
    weights = [layer.to_weight() for layer in layers]
    codes = {id(tensor) for layer in layers for tensor in layer.tensors()}
    others = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in codes]
    return Sizes(
        sum(weight.nbytes for weight in weights) + sum(tensor.nbytes for tensor in others),
        2 * (sum(rows * columns for rows, columns in (w.shape for w in weights)) + sum(t.numel() for t in others)),
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
