"""Dense products on the CPU with the dequantised weight: what quantisation is measured against.

`dense` is float32 through NumPy's BLAS; `torch_fp32` and `dense_bf16` are torch's float32 and bfloat16.
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
        return Cost(self.bits // 8 * m * k + product.x_bytes, product.y_bytes, product.multiply_adds)

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


class _Torch(_Dense):
    """torch's."""

    dtype: str

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed (pip install 'codegemm[torch]')"
        return None

    def tolerance(self, product: Product[Spec]) -> float:
        return 1e-2

    def prepare(self, weight: Weight, device: Device) -> Any:
        import torch

        return torch.from_numpy(weight.dequantize(np.float32)).to(getattr(torch, self.dtype))

    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        import torch

        x, out = to_torch(x).to(prepared.dtype), to_torch(out)
        if out.dtype == prepared.dtype:
            torch.mm(x, prepared.T, out=out)
        else:
            out.copy_(torch.mm(x, prepared.T))


class TorchFp32(_Torch):
    """float32, torch's BLAS."""

    name, dtype = "torch_fp32", "float32"
    bits = 32


class DenseBf16(_Torch):
    """bfloat16 weights and x, torch on the CPU; its error is that of bfloat16."""

    name, dtype = "dense_bf16", "bfloat16"
    bits = 16
