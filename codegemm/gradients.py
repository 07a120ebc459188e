"""Products as nodes of torch's graph: y = x @ W^T + bias, whose gradients are g @ W and the sum of g's rows.

W has none: its codes are integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Times = Callable[[Any, Any], Any]  # (x, bias) -> y
Back = Callable[[Any], Any]  # g -> g @ W


def linear(x: Any, bias: Any, times: Times, back: Back) -> Any:
    """times(x, bias) for tensors x [..., K] and bias [M] or what torch does not track, with gradients of both."""
    return _Linear.apply(x, bias, times, back)


class _Linear(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(x: Any, bias: Any, times: Times, back: Back) -> Any:
        return times(x, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, bias, ctx.times, ctx.back = inputs
        ctx.bias = (bias.dtype, bias.device) if isinstance(bias, torch.Tensor) else None

    @staticmethod
    def backward(ctx: Any, g: Any) -> tuple[Any, ...]:
        of_x, of_bias, *_ = ctx.needs_input_grad
        gradient = _Back.apply(g, ctx.times, ctx.back) if of_x else None
        if not of_bias:
            return gradient, None, None, None
        dtype, device = ctx.bias
        return gradient, g.reshape(-1, g.shape[-1]).sum(0, dtype=_wide(dtype)).to(device, dtype), None, None


class _Back(torch.autograd.Function):  # type: ignore[misc]
    """g @ W, whose own gradient is a product again."""

    @staticmethod
    def forward(g: Any, times: Times, back: Back) -> Any:
        return back(g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.times, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, g: Any) -> tuple[Any, ...]:
        return linear(g, None, ctx.times, ctx.back), None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
