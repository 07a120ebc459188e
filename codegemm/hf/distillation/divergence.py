"""How far a model's predictions are from another's, with gradients."""

from __future__ import annotations

from typing import Any

import torch

_ROWS = 256  # of logits at a time: a vocabulary may have a hundred thousand words


def mean_divergence(logits: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """The mean over rows of KL(base || model) in nats, of logits [..., words] of both, with a gradient to the model's.

    Computed in float32, in parts, so that beside the logits little is held.
    """
    found: torch.Tensor = _Divergence.apply(logits.flatten(0, -2), base.flatten(0, -2))
    return found


class _Divergence(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(context: Any, logits: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        gradient, total = torch.empty_like(logits), logits.new_zeros((), dtype=torch.float64)
        for own, other, out in zip(logits.split(_ROWS), base.split(_ROWS), gradient.split(_ROWS)):
            said, right = own.float().log_softmax(-1), other.float().log_softmax(-1)
            shares = right.exp()
            total += torch.dot(shares.flatten(), (right - said).flatten())
            out.copy_(said.exp_().sub_(shares).div_(len(logits)))
        context.save_for_backward(gradient)
        return (total / len(logits)).to(torch.float32)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (own,) = context.saved_tensors
        return own * gradient, None
