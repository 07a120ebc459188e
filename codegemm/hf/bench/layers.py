"""Linear layers that take part beside the package's own."""

from __future__ import annotations

import torch

import codegemm
from codegemm.formats.weight import Weight


class PlannedLinear(torch.nn.Module):  # type: ignore[misc]
    """y = x @ W^T by one kernel, named: x [..., in_features] of at most `n` rows, y in its dtype."""

    def __init__(self, weight: Weight, n: int, dtype: torch.dtype, kernel: str) -> None:
        """weight: on its device; codes are held once, in the kernel's order."""
        super().__init__()
        codegemm.compact(weight, n, dtype, kernel=kernel)
        self.plan = codegemm.plan(weight, n, dtype, kernel=kernel)
        self.out_features = weight.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product; nothing else is allocated than y."""
        return self.plan(x, out=x.new_empty((*x.shape[:-1], self.out_features)))

    def to_weight(self) -> Weight:
        """What it multiplies by."""
        return self.plan.weight

    def tensors(self) -> list[torch.Tensor]:
        """Parameters that are the weight's: none."""
        return []


def dense_layer(shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> torch.nn.Linear:
    """Of torch, with random numbers."""
    layer = torch.nn.Linear(shape[1], shape[0], bias=False, device="meta", dtype=dtype)
    weight = torch.empty(shape, device=device, dtype=dtype).normal_()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer
