"""Linear layers that take part, of a shape and a seed."""

from __future__ import annotations

import torch

from codegemm.devices import Device
from codegemm.formats.format import random_weight
from codegemm.hf.planned import PlannedLinear
from codegemm.torch import CodebookLinear


def dense(shape: tuple[int, int], seed: int, device: torch.device, dtype: torch.dtype) -> torch.nn.Linear:
    """Of torch, with random numbers."""
    layer = torch.nn.Linear(shape[1], shape[0], bias=False, device="meta", dtype=dtype)
    generator = torch.Generator(device).manual_seed(seed)
    weight = torch.empty(shape, device=device, dtype=dtype).normal_(generator=generator)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


def quantised(shape: tuple[int, int], seed: int, config: str, device: Device) -> CodebookLinear:
    """As users have them, with random codes."""
    return CodebookLinear(random_weight(shape, config, seed).to(device))


def planned(
    shape: tuple[int, int], seed: int, config: str, device: Device, n: int, dtype: torch.dtype, kernel: str
) -> PlannedLinear:
    """By a kernel of that name, with random codes."""
    return PlannedLinear(random_weight(shape, config, seed).to(device), n, dtype, kernel)
