"""A linear layer by a kernel of one's choice."""

from __future__ import annotations

import torch

from codegemm import products
from codegemm.formats.weight import Weight


class PlannedLinear(torch.nn.Module):  # type: ignore[misc]
    """y = x @ W^T by one kernel, named: x [..., in_features] of at most `n` rows, y in its dtype."""

    def __init__(self, weight: Weight, n: int, dtype: torch.dtype, kernel: str) -> None:
        """weight: on its device; codes are held once, in the kernel's order."""
        super().__init__()
        products.compact(weight, n, dtype, kernel=kernel)
        self.plan = products.plan(weight, n, dtype, kernel=kernel)
        self.out_features, self.in_features = weight.shape
        self.config = weight.spec.name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product; nothing else is allocated than y."""
        return self.plan(x, out=x.new_empty((*x.shape[:-1], self.out_features)))

    def tensors(self) -> list[torch.Tensor]:
        """Its parameters that hold the weight: none."""
        return []
