"""Bytes of a model's weights, beside what they would be in half precision."""

from __future__ import annotations

from typing import Any, NamedTuple

from codegemm.torch import CodebookLinear


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
    weights = [layer.to_weight() for layer in model.modules() if isinstance(layer, CodebookLinear)]
    codes = {id(tensor) for layer in model.modules() if isinstance(layer, CodebookLinear) for tensor in layer.tensors()}
    others = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in codes]
    return Sizes(
        sum(weight.nbytes for weight in weights) + sum(tensor.nbytes for tensor in others),
        2 * (sum(rows * columns for rows, columns in (w.shape for w in weights)) + sum(t.numel() for t in others)),
    )


def gpu_peak() -> int:
    """Bytes that torch had allocated on the GPU at most, with those of CuPy's pool, where kernels hold codes."""
    import cupy
    import torch

    return int(torch.cuda.max_memory_allocated()) + int(cupy.get_default_memory_pool().total_bytes())
