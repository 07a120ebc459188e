"""QuIP#'s way of multiplying (Tseng et al., 2024): rotate x, decode E8P vectors and multiply, rotate the result.

y = SV * U_M(What (U_K^T (SU * x))), all in float32, so nothing needs the original's scaling by 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.devices import Device
from codegemm.engines import declarations
from codegemm.engines.cpu import kernel, library
from codegemm.engines.cpu.kernel import CpuKernel
from codegemm.formats import e8p_codebook
from codegemm.formats.e8p import E8PSpec, E8PWeight
from codegemm.formats.hadamard import hadamard, split_length
from codegemm.formats.rotation import Rotation
from codegemm.kernel import Cost, Product

SOURCE = Path(__file__).with_name("quip.cpp")
QuipArgs = declarations.structure(SOURCE, "QuipArgs")


@dataclass
class Prepared(kernel.Prepared[E8PSpec]):
    """Unpacked codes uint16 [M, K/8], the residual's [M, K/8] (uint16 or uint8), SU and SV in float32."""

    resid_scale: float


@cache
def _tables() -> dict[str, npt.NDArray[np.float32]]:
    """The decode tables, 8 KiB each."""
    return {
        "abs_vectors": e8p_codebook.abs_vectors(),
        "sign_vectors": e8p_codebook.sign_vectors(),
        "shifts": 0.25 - 0.5 * e8p_codebook.parity(np.arange(256)).astype(np.float32),
        "ball": e8p_codebook.residual_grid(),
    }


@cache
def _order_matrix(n: int, transpose: bool) -> npt.NDArray[np.float32]:
    """hadK of a length, or its transpose."""
    matrix = hadamard(split_length(n)[0]).astype(np.float32)
    return np.ascontiguousarray(matrix.T if transpose else matrix)


class Quip(CpuKernel[E8PSpec, E8PWeight]):
    """E8P decode by table, Hadamard transforms of every order, 2, 3 and 4 bit."""

    name = "quip"
    weights = E8PWeight
    automatic = True
    rearranged = ("qidxs",)
    source, entry, structure = SOURCE, "quip", QuipArgs

    def prepare(self, weight: E8PWeight, device: Device) -> Prepared:
        spec, codes = weight.spec, weight.codes()
        m, k = spec.shape
        arrays: dict[str, npt.NDArray] = {
            "codes": codes.main,
            "SU": np.asarray(weight.SU, np.float32),
            "SV": np.asarray(weight.SV, np.float32),
            "had_in": _order_matrix(k, True),
            "had_out": _order_matrix(m, False),
            **_tables(),
        }
        if codes.residual is not None:
            arrays["residual"] = codes.residual
        arguments = library.Arguments(
            QuipArgs,
            arrays,
            spec,
            rows=m,
            order_in=split_length(k)[0],
            order_out=split_length(m)[0],
            resid_factor=1 / weight.resid_scale,
        )
        return Prepared(spec, arguments, weight.resid_scale)

    def restore(self, prepared: Prepared, name: str) -> npt.NDArray[np.int64]:
        arrays = prepared.arguments.arrays
        words = [e8p_codebook.pack(arrays["codes"])]
        if prepared.spec.bits == 3:
            words.append(arrays["residual"].view(np.int64))
        elif prepared.spec.bits == 4:
            words.append(e8p_codebook.pack(arrays["residual"]))
        return np.concatenate(words, 1)

    def workspace(self, product: Product[E8PSpec], device: Device) -> int:
        return 4 * product.n * (sum(product.spec.shape) + max(product.spec.shape))

    def run_numpy(self, prepared: Prepared, x: Any, out: Any, workspace: Any) -> None:
        m, k = prepared.spec.shape
        arrays = prepared.arguments.arrays
        with np.errstate(over="ignore", invalid="ignore"):
            lattice = e8p_codebook.grid().astype(np.float32)[arrays["codes"]]
            if prepared.spec.bits > 2:
                points = e8p_codebook.grid() if prepared.spec.bits == 4 else e8p_codebook.residual_grid()
                lattice += (points.astype(np.float32) / np.float32(prepared.resid_scale))[arrays["residual"]]
            rotated = Rotation(arrays["SU"]).rotate(x.astype(np.float32))
            out[...] = Rotation(arrays["SV"]).unrotate(rotated @ lattice.reshape(m, k).T)

    def cost(self, product: Product[E8PSpec], device: Device) -> Cost:
        m, k = product.spec.shape
        return Cost(product.spec.bits * m * k // 8 + 4 * (m + k) + product.x_bytes, product.y_bytes)
