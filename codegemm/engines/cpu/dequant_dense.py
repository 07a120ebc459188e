"""Dequantise the whole matrix, then multiply by it: what a library without a kernel does."""

from __future__ import annotations

from ctypes import byref
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.devices import Device
from codegemm.engines.cpu import dequant, library
from codegemm.engines.cpu.dequant import Prepared
from codegemm.engines.cpu.kernel import CpuKernel
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Cost, Product


class DequantDense(CpuKernel[CodebookSpec, CodebookWeight]):
    """The matrix is rebuilt in float32 in the workspace at every call and multiplied by NumPy's BLAS."""

    name = "dequant_dense"
    weights = CodebookWeight
    source = dequant.SOURCE

    def prepare(self, weight: CodebookWeight, device: Device) -> Prepared:
        return dequant.prepare(weight)

    def workspace(self, product: Product[CodebookSpec], device: Device) -> int:
        return 4 * product.spec.out_features * product.spec.in_features + staging_bytes(product)

    def function(self, n: int) -> Any:
        return dequant.decoder()

    def is_one_call(self, n: int) -> bool:
        return False

    def run_compiled(self, function: Any, prepared: Any, x: Any, out: Any, workspace: Any, bias: Any = None) -> None:
        dense, rest = _dense(prepared, workspace)
        arguments = prepared.arguments
        function(byref(arguments.filled), library.address(dense), 0, len(arguments.arrays["blocks"]))
        multiply_float32(dense, x, out, rest, bias)

    def run_numpy(self, prepared: Prepared, x: Any, out: Any, workspace: Any) -> None:
        dense, rest = _dense(prepared, workspace)
        for start, block in prepared.weight.dense_blocks(np.float32):
            dense[start : start + len(block)] = block
        multiply_float32(dense, x, out, rest)

    def cost(self, product: Product[CodebookSpec], device: Device) -> Cost:
        dense = 4 * product.spec.out_features * product.spec.in_features
        return Cost(
            dequant.weight_bytes(product.spec) + product.x_bytes + dense, product.y_bytes + dense, product.multiply_adds
        )


def staging_bytes(product: Product) -> int:
    """Bytes of float32 copies of x and y."""
    return 4 * product.n * sum(product.spec.shape)


def multiply_float32(dense: npt.NDArray, x: npt.NDArray, out: npt.NDArray, workspace: Any, bias: Any = None) -> None:
    """out = x @ dense^T + bias in float32, through copies in the workspace where x or out is of another dtype."""
    n, (m, k) = len(x), dense.shape
    floats = workspace[: 4 * n * (m + k)].view(np.float32)
    x32, y32 = floats[: n * k].reshape(n, k), floats[n * k :].reshape(n, m)
    with np.errstate(over="ignore", invalid="ignore"):
        if x.dtype != np.float32:
            x32[...] = x
            x = x32
        y = out if out.dtype == np.float32 else y32
        np.matmul(x, dense.T, out=y)
        if bias is not None:
            y += bias
        if y is not out:
            out[...] = y


def _dense(prepared: Prepared, workspace: Any) -> tuple[npt.NDArray[np.float32], Any]:
    """Where the matrix is rebuilt, float32 [M, K], and the rest of the workspace."""
    m, k = prepared.spec.shape
    return workspace[: 4 * m * k].view(np.float32).reshape(m, k), workspace[4 * m * k :]
