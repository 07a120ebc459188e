"""What QuIP# and QTIP share: a core between two randomised Hadamard rotations, which make its weights incoherent."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from codegemm.formats.codebook import check_finite
from codegemm.formats.rotation import Rotation
from codegemm.formats.weight import Spec, Weight

SIGNS = (16, 16)  # bits of an entry of SU and SV that have signs alone


@dataclass(frozen=True)
class IncoherentSpec(Spec):
    """Shape and bits of an IncoherentWeight; `vector_bits` is the size of one entry of SU and SV."""

    bits: int
    vector_bits: tuple[int, int] = SIGNS

    @property
    def packed_bits(self) -> int:
        """Codes, SU and SV."""
        su, sv = self.vector_bits
        return self.bits * self.out_features * self.in_features + su * self.in_features + sv * self.out_features


class IncoherentWeight(Weight):
    """W = diag(SV) U_M core U_K^T diag(SU), U orthogonal Hadamard transforms (`codegemm.formats.hadamard`).

    SU, SV: float16 or float32 [K], [M]; signs or, after fine-tuning, any reals; the overall scale is in SV.
    """

    SU: Any
    SV: Any

    @property
    @abstractmethod
    def spec(self) -> IncoherentSpec:
        """Shape and bits."""

    @property
    def bits(self) -> int:
        """Bits of one weight in the codes."""
        return self.spec.bits

    @property
    def dtype(self) -> np.dtype:
        """The dtype of SV."""
        return np.dtype(self.SV.dtype)

    @property
    def left(self) -> Rotation:
        """Of whole columns, times SV."""
        return Rotation(self.SV)

    @property
    def right(self) -> Rotation:
        """Of whole rows, times SU."""
        return Rotation(self.SU)

    def __getitem__(self, rows: slice) -> NoReturn:
        raise TypeError(f"{type(self).__name__}: it can't be split, its rotation mixes all rows")


def check_sides(su: Any, sv: Any) -> tuple[int, int]:
    """Bits of an entry of SU and SV; ValueError unless both are finite vectors of halves or singles."""
    for name, array in (("SU", su), ("SV", sv)):
        if array.ndim != 1:
            raise ValueError(f"{name}: shape {array.shape}, must have one axis")
        if array.dtype not in (np.float16, np.float32):
            raise ValueError(f"{name}: dtype {array.dtype}, must be float16 or float32")
        check_finite(name, array)
    return 8 * su.dtype.itemsize, 8 * sv.dtype.itemsize
