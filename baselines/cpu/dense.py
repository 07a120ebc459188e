"""Dense products on the CPU with the dequantised weight: what quantisation is measured against.

`dense` is float32 through NumPy's BLAS; `dense_bf16` is torch's bfloat16.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from codegemm.arrays import to_torch
from codegemm.devices import Device
from codegemm.engines.cpu.dequant_dense import multiply_float32, staging_bytes
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel, Product


class _Dense(Kernel[Spec, Weight]):
    """A product with the dequantised weight, in numbers of so many bits."""

    engine = "cpu"
    bits: int

    def cost(self, product: Product[Spec], device: Device) -> Cost:
        m, k = product.spec.shape
        return Cost(self.bits // 8 * m * k + product.x_bytes, product.y_bytes)

    def bits_per_weight(self, spec: Spec) -> float:
        return self.bits


class Dense(_Dense):
    """float32, NumPy's BLAS."""

    name = "dense"
    bits = 32
    adds_bias = True

    def prepare(self, weight: Weight, device: Device) -> Any:
        return weight.dequantize(np.float32)

    def workspace(self, product: Product[Spec], device: Device) -> int:
        return staging_bytes(product)

    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any, bias: Any = None) -> None:
        multiply_float32(prepared, x, out, workspace, bias)


class DenseBf16(_Dense):
    """bfloat16 weights and x, torch on the CPU; its error is that of bfloat16."""

    name = "dense_bf16"
    bits = 16

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed (pip install 'codegemm[torch]')"
        return None

    def tolerance(self, product: Product[Spec]) -> float:
        return 1e-2

    def prepare(self, weight: Weight, device: Device) -> Any:
        import torch

        return torch.from_numpy(weight.dequantize(np.float32)).to(torch.bfloat16)

    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        import torch

        y = torch.nn.functional.linear(to_torch(x).to(torch.bfloat16), prepared)
        to_torch(out).copy_(y)
