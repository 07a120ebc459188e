"""y = x @ W^T in float64, straight from the formats' definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.devices import Device
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.e8p import E8PWeight
from codegemm.formats.extended import ExtendedWeight
from codegemm.formats.hadamard import transform
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel, Product


def product(weight: Weight, x: npt.NDArray) -> npt.NDArray[np.float64]:
    """x [n, K] times the dequantised weight, transposed: float64 [n, M]."""
    x = x.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(weight, E8PWeight):
            rotated = transform(x * weight.SU, transpose=True)
            return transform(rotated @ weight.lattice().T) * weight.SV
        if isinstance(weight, CodebookWeight | ExtendedWeight):
            blocks = [x @ block.T for _, block in weight.dense_blocks(np.float64)]
            return np.concatenate(blocks, axis=1)
        return x @ weight.dequantize(np.float64).T


class Reference(Kernel[Spec, Weight]):
    """The truth of all tests: every format, any number of rows, no cleverness."""

    name = "reference"
    engine = "cpu"

    def prepare(self, weight: Weight, device: Device) -> Weight:
        return weight._with_arrays(weight.arrays)  # not the weight itself, which keeps this

    def run(self, prepared: Weight, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = product(prepared, x)

    def cost(self, product: Product[Spec], device: Device) -> Cost:
        m, k = product.spec.shape
        return Cost(8 * m * k + product.x_bytes, product.y_bytes)


KERNELS: list[Kernel] = [Reference()]
