"""What QuIP# and QTIP share: a core between two randomised Hadamard rotations, which make its weights incoherent."""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Self

import numpy as np

from codegemm.formats.codebook import check_finite
from codegemm.formats.hadamard import split_length
from codegemm.formats.rotation import Rotation
from codegemm.formats.weight import Spec, Weight

BITS = (2, 3, 4)


@dataclass(frozen=True)
class IncoherentConfig:
    """Bits of a weight; as text the format's name, and the bits where they aren't 2."""

    bits: int = 2
    format_name: ClassVar[str]

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or self.bits not in BITS:
            raise ValueError(f"{self.format_name} of {self.bits!r} bits: must be of {', '.join(map(str, BITS))}")

    def __str__(self) -> str:
        return self.format_name if self.bits == 2 else f"{self.format_name}{self.bits}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The inverse of `str`; None for another format's text, ValueError for other bits."""
        match = re.fullmatch(rf"{cls.format_name}([0-9]{{0,9}})", text)
        return cls(int(match[1] or 2)) if match else None


@dataclass(frozen=True)
class IncoherentSpec(Spec):
    """Shape and bits of an IncoherentWeight; `vector_bits` is the size of one entry of SU and SV."""

    bits: int
    vector_bits: tuple[int, int] = (16, 16)  # of signs alone
    config_type: ClassVar[type[IncoherentConfig]]

    @property
    def config(self) -> IncoherentConfig:
        """The bits, as a configuration."""
        return self.config_type(self.bits)

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


def check_lengths(name: str, shape: tuple[int, int], multiples: tuple[int, int]) -> None:
    """Raise ValueError unless out_features and in_features are such multiples, each with a Hadamard matrix."""
    for what, length, multiple in zip(("out_features", "in_features"), shape, multiples):
        if length < 1 or length % multiple:
            raise ValueError(f"{what}={length}: {name} needs a multiple of {multiple}")
    for length in shape:
        split_length(length)


def check_sides(su: Any, sv: Any) -> tuple[int, int]:
    """Bits of an entry of SU and SV; ValueError unless both are finite vectors of halves or singles."""
    for name, array in (("SU", su), ("SV", sv)):
        if array.ndim != 1:
            raise ValueError(f"{name}: shape {array.shape}, must have one axis")
        if array.dtype not in (np.float16, np.float32):
            raise ValueError(f"{name}: dtype {array.dtype}, must be float16 or float32")
        check_finite(name, array)
    return 8 * su.dtype.itemsize, 8 * sv.dtype.itemsize
