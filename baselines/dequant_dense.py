"""Dequantise the whole matrix, then multiply by it: what a library without a kernel does."""

from __future__ import annotations

from typing import Any

import numpy as np

from codegemm.baselines.dense import multiply_float32, staging_bytes
from codegemm.engines.cpu.dequant import Dequant, Prepared, dequantize_into
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel


class DequantDense(Kernel):
    """The matrix is rebuilt in float32 in the workspace at every call and multiplied by NumPy's BLAS."""

    name = "dequant_dense"
    engine = "cpu"
    _dequant = Dequant()

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        return self._dequant.supports(spec, n, dtype, device)

    def prepare(self, weight: Weight, device: str) -> Prepared:
        return self._dequant.prepare(weight, device)

    def workspace(self, spec: Spec, n: int, device: str) -> int:
        return 4 * spec.out_features * spec.in_features + staging_bytes(n, spec.shape)

    def run(self, prepared: Prepared, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        m, k = prepared.weight.shape
        dense = workspace[: 4 * m * k].view(np.float32).reshape(m, k)
        dequantize_into(prepared, dense)
        multiply_float32(dense, x, out, workspace[4 * m * k :])

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        decode = self._dequant.cost(spec, n, dtype)
        dense = 4 * spec.out_features * spec.in_features
        return Cost(decode.bytes_read + dense, decode.bytes_written + dense, decode.lookups, decode.multiply_adds, 2)
