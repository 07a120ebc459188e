"""Dense products on the CPU with the dequantised weight: what quantisation is measured against.

`dense` is float32 through NumPy's BLAS; `dense_bf16` is torch's bfloat16.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from codegemm.devices import Device, to_torch
from codegemm.engines.cpu.dequant_dense import multiply_float32, staging_bytes
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel, Product


class Dense(Kernel[Spec, Weight]):
    """float32, NumPy's BLAS."""

    name = "dense"
    engine = "cpu"

    def prepare(self, weight: Weight, device: Device) -> Any:
        return weight.dequantize(np.float32)

    def workspace(self, product: Product[Spec], device: Device) -> int:
        return staging_bytes(product)

    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        multiply_float32(prepared, x, out, workspace)

    def cost(self, product: Product[Spec], device: Device) -> Cost:
        return _cost(product, 4)

    def bits_per_weight(self, spec: Spec) -> float:
        return 32


class DenseBf16(Kernel[Spec, Weight]):
    """bfloat16 weights and x, torch on the CPU; its error is that of bfloat16."""

    name = "dense_bf16"
    engine = "cpu"

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed (pip install 'codegemm[torch]')"
        return None

    def prepare(self, weight: Weight, device: Device) -> Any:
        import torch

        return torch.from_numpy(weight.dequantize(np.float32)).to(torch.bfloat16)

    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        import torch

        y = torch.nn.functional.linear(to_torch(x).to(torch.bfloat16), prepared)
        to_torch(out).copy_(y)

    def cost(self, product: Product[Spec], device: Device) -> Cost:
        return _cost(product, 2)

    def bits_per_weight(self, spec: Spec) -> float:
        return 16


def _cost(product: Product[Spec], weight_bytes: int) -> Cost:
    """Weights of `weight_bytes` each, x and y."""
    m, k = product.spec.shape
    return Cost(weight_bytes * m * k + product.x_bytes, product.y_bytes)
