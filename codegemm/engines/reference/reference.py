"""y = x @ W^T with the dense matrix in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel


class Reference(Kernel):
    """Dequantises once to float64 and multiplies in float64."""

    name = "reference"
    engine = "cpu"

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        return None

    def prepare(self, weight: Weight, device: str) -> Any:
        return weight.dequantize(np.float64)

    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = x.astype(np.float64) @ prepared.T

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        m, k = spec.shape
        return Cost(8 * m * k + n * k * dtype.itemsize, n * m * dtype.itemsize, 0, n * m * k)
