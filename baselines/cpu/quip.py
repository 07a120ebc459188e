"""QuIP#'s way of multiplying (Tseng et al., 2024): rotate x, decode E8P vectors and multiply, rotate the result.

All is in float32, so nothing needs the original's scaling by 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codegemm.baselines.cpu.incoherent import IncoherentKernel
from codegemm.devices import Device
from codegemm.engines import declarations
from codegemm.engines.cpu import kernel
from codegemm.formats import e8p_codebook
from codegemm.formats.e8p import E8PSpec, E8PWeight

SOURCE = Path(__file__).with_name("quip.cpp")


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


class Quip(IncoherentKernel[E8PSpec, E8PWeight]):
    """E8P decode by table, Hadamard transforms of every order, 2, 3 and 4 bit."""

    name = "quip"
    weights = E8PWeight
    rearranged = ("qidxs",)
    source, entry, structure = SOURCE, "quip", declarations.structure(SOURCE, "QuipArgs")

    def prepare(self, weight: E8PWeight, device: Device) -> Prepared:
        codes = weight.codes()
        arrays: dict[str, npt.NDArray] = {"codes": codes.main, **_tables()}
        if codes.residual is not None:
            arrays["residual"] = codes.residual
        arguments = self.arguments(weight, arrays, resid_factor=1 / weight.resid_scale)
        return Prepared(weight.spec, arguments, weight.resid_scale)

    def restore(self, prepared: Prepared, name: str) -> npt.NDArray[np.int64]:
        arrays = prepared.arguments.arrays
        words = [e8p_codebook.pack(arrays["codes"])]
        if prepared.spec.bits == 3:
            words.append(arrays["residual"].view(np.int64))
        elif prepared.spec.bits == 4:
            words.append(e8p_codebook.pack(arrays["residual"]))
        return np.concatenate(words, 1)

    def core(self, prepared: Prepared) -> npt.NDArray[np.float32]:
        arrays = prepared.arguments.arrays
        lattice = e8p_codebook.grid().astype(np.float32)[arrays["codes"]]
        if prepared.spec.bits > 2:
            points = e8p_codebook.grid() if prepared.spec.bits == 4 else e8p_codebook.residual_grid()
            lattice += (points.astype(np.float32) / np.float32(prepared.resid_scale))[arrays["residual"]]
        return lattice.reshape(prepared.spec.shape)
