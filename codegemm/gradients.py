"""Products as nodes of torch's graph: y = x @ W^T + bias, whose gradients are g @ W and the sum of g's rows.

They also have derivatives in forward mode, and `torch.func` transforms them.

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
        ctx.bias = bias.dtype if isinstance(bias, torch.Tensor) else None
        ctx.y = output.shape, output.dtype

    @staticmethod
    def backward(ctx: Any, g: Any) -> tuple[Any, ...]:
        of_x, of_bias, *_ = ctx.needs_input_grad
        gradient = _Back.apply(g, ctx.times, ctx.back) if of_x else None
        if not of_bias:
            return gradient, None, None, None
        total = g.reshape(-1, g.shape[-1]).sum(0, dtype=wide(ctx.bias))
        return gradient, total.to(ctx.bias), None, None

    @staticmethod
    def jvp(ctx: Any, x: Any, bias: Any, *_: None) -> Any:
        """Of tangents, of which one may be missing."""
        if x is None:
            return bias.to(ctx.y[1]).expand(ctx.y[0])
        return linear(x, bias, ctx.times, ctx.back)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Any, bias: Any, times: Times, back: Back) -> Any:
        """Rows of x are a batch as it is; with biases of their own they are products of their own."""
        of_x, of_bias, *_ = in_dims
        if of_bias is None:
            return linear(x.movedim(of_x, 0), bias, times, back), 0
        xs = [x] * info.batch_size if of_x is None else x.unbind(of_x)
        return torch.stack([linear(*each, times, back) for each in zip(xs, bias.unbind(of_bias))]), 0


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

    @staticmethod
    def jvp(ctx: Any, g: Any, *_: None) -> Any:
        return _Back.apply(g, ctx.times, ctx.back)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], g: Any, times: Times, back: Back) -> Any:
        return _Back.apply(g.movedim(in_dims[0], 0), times, back), 0


def wide(dtype: torch.dtype) -> torch.dtype:
    """What numbers of this dtype are added up in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
