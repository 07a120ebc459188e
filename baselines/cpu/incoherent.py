"""What products with a core between two randomised Hadamard rotations share: all but the core's decoding.

y = SV * U_M(core (U_K^T (SU * x))), all in float32.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from codegemm.devices import Device
from codegemm.engines.cpu import library
from codegemm.engines.cpu.kernel import CpuKernel, Prepared
from codegemm.formats.hadamard import hadamard, split_length
from codegemm.formats.incoherent import IncoherentSpec, IncoherentWeight
from codegemm.formats.rotation import Rotation
from codegemm.kernel import Cost, Product

S = TypeVar("S", bound=IncoherentSpec)
W = TypeVar("W", bound=IncoherentWeight)


@cache
def _order_matrix(n: int, transpose: bool) -> npt.NDArray[np.float32]:
    """hadK of a length, or its transpose."""
    matrix = hadamard(split_length(n)[0]).astype(np.float32)
    return np.ascontiguousarray(matrix.T if transpose else matrix)


class IncoherentKernel(CpuKernel[S, W]):
    """A kernel whose source multiplies by `multiply_between_rotations` (incoherent.hpp)."""

    automatic = True

    def arguments(self, weight: W, arrays: dict[str, npt.NDArray], **numbers: float) -> library.Arguments:
        """Those of the core, with the rotations'."""
        m, k = weight.shape
        rotations: dict[str, npt.NDArray] = {
            "SU": np.asarray(weight.SU, np.float32),
            "SV": np.asarray(weight.SV, np.float32),
            "had_in": _order_matrix(k, True),
            "had_out": _order_matrix(m, False),
        }
        orders = {"order_in": split_length(k)[0], "order_out": split_length(m)[0]}
        return library.Arguments(self.structure, arrays | rotations, weight.spec, rows=m, **orders, **numbers)

    @abstractmethod
    def core(self, prepared: Any) -> npt.NDArray[np.float32]:
        """The decoded matrix [M, K] between the rotations."""

    def workspace(self, product: Product[S], device: Device) -> int:
        return 4 * product.n * (sum(product.spec.shape) + max(product.spec.shape))

    def run_numpy(self, prepared: Prepared[S], x: Any, out: Any, workspace: Any) -> None:
        arrays = prepared.arguments.arrays
        with np.errstate(over="ignore", invalid="ignore"):
            rotated = Rotation(arrays["SU"]).rotate(x.astype(np.float32))
            out[...] = Rotation(arrays["SV"]).unrotate(rotated @ self.core(prepared).T)

    def cost(self, product: Product[S], device: Device) -> Cost:
        m, k = product.spec.shape
        read = product.spec.bits * m * k // 8 + 4 * (m + k) + product.x_bytes
        return Cost(read, product.y_bytes, product.multiply_adds)
