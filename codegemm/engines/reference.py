"""y = x @ W^T in float64, straight from the formats' definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.devices import Device
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel, Product


def product(weight: Weight, x: npt.NDArray) -> npt.NDArray[np.float64]:
    """x [n, K] times the weight L (core + offsets) R, transposed: float64 [n, M]."""
    x = x.astype(np.float64)
    left, right = weight.left, weight.right
    with np.errstate(over="ignore", invalid="ignore"):
        if left is None:
            return np.concatenate([x @ block.T for _, block in weight.dense_blocks(np.float64)], axis=1)
        rotated = x if right is None else right.rotate(x)
        inner = [rotated @ block.T for _, block in weight.core_blocks(np.dtype(np.float64))]
        return left.unrotate(np.concatenate(inner, axis=1))


class Reference(Kernel[Spec, Weight]):
    """The truth of all tests: every format, any number of rows, no cleverness."""

    name = "reference"
    engine = "cpu"

    def prepare(self, weight: Weight, device: Device) -> Weight:
        return weight.twin()  # not the weight itself, which keeps this

    def run(self, prepared: Weight, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = product(prepared, x)

    def cost(self, product: Product[Spec], device: Device) -> Cost:
        m, k = product.spec.shape
        return Cost(8 * m * k + product.x_bytes, product.y_bytes, product.multiply_adds)


KERNELS: list[Kernel] = [Reference()]
