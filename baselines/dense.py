"""Dense products on the CPU with the dequantised weight: what quantisation is measured against.

`dense` is float32 through NumPy's BLAS; `dense_bf16` is torch's bfloat16.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import arrays
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel


def staging(workspace: Any, n: int, spec_shape: tuple[int, int]) -> tuple[npt.NDArray, npt.NDArray]:
    """float32 views [n, K] and [n, M] on a workspace of `staging_bytes`."""
    m, k = spec_shape
    floats = workspace[: staging_bytes(n, spec_shape)].view(np.float32)
    return floats[: n * k].reshape(n, k), floats[n * k :].reshape(n, m)


def staging_bytes(n: int, spec_shape: tuple[int, int]) -> int:
    """Bytes of float32 copies of x and y."""
    return 4 * n * sum(spec_shape)


def multiply_float32(dense: npt.NDArray, x: npt.NDArray, out: npt.NDArray, workspace: Any) -> None:
    """out = x @ dense^T in float32, through copies in the workspace where x or out is of another dtype."""
    x32, y32 = staging(workspace, len(x), dense.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        if x.dtype != np.float32:
            x32[...] = x
            x = x32
        direct = out.dtype == np.float32
        np.matmul(x, dense.T, out=out if direct else y32)
        if not direct:
            out[...] = y32


def dense_cost(spec: Spec, n: int, dtype: np.dtype, weight_bytes: int) -> Cost:
    """Weights of `weight_bytes` each, x and y once."""
    m, k = spec.shape
    return Cost(weight_bytes * m * k + n * k * dtype.itemsize, n * m * dtype.itemsize, 0, n * m * k)


class Dense(Kernel):
    """float32, NumPy's BLAS."""

    name = "dense"
    engine = "cpu"
    extended = True

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        return None

    def prepare(self, weight: Weight, device: str) -> Any:
        return weight.dequantize(np.float32)

    def workspace(self, spec: Spec, n: int, device: str) -> int:
        return staging_bytes(n, spec.shape)

    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        multiply_float32(prepared, x, out, workspace)

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        return dense_cost(spec, n, dtype, 4)

    def bits_per_weight(self, spec: Spec) -> float:
        return 32


class DenseBf16(Kernel):
    """bfloat16 weights and x, torch on the CPU; its error is that of bfloat16."""

    name = "dense_bf16"
    engine = "cpu"
    extended = True

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed (pip install 'codegemm[torch]')"
        return None

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        return None

    def prepare(self, weight: Weight, device: str) -> Any:
        import torch

        return torch.from_numpy(weight.dequantize(np.float32)).to(torch.bfloat16)

    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        import torch

        y = torch.nn.functional.linear(arrays.to_torch(x).to(torch.bfloat16), prepared)
        arrays.to_torch(out).copy_(y)

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        return dense_cost(spec, n, dtype, 2)

    def bits_per_weight(self, spec: Spec) -> float:
        return 16
