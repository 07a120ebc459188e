"""The configuration of a codebook-quantised weight: vector length v, codebooks m, bits b, group size g."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Self

import numpy as np
import numpy.typing as npt

MAX_V, MAX_M, MAX_B = 16, 8, 16

SYNTAX = "m<codebooks>v<vector length>[b<bits>][g<group size>], like m1v4g128, or q1[v<vector length>][g<group size>]"
_NUMBER = r"[0-9]{1,9}"
PATTERN = re.compile(
    rf"(?:m(?P<m>{_NUMBER})v(?P<v>{_NUMBER})(?:b(?P<b>{_NUMBER}))?|q1(?:v(?P<signs>{_NUMBER}))?)"
    rf"(?:g(?P<g>-1|{_NUMBER}))?"
)
MAX_SIGNS = 8  # of a code: all of them are 2^8 centroids


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """How a weight matrix is cut and coded, in the terms of the CodeGEMM paper.

    v: weights in one vector (vector length), 1 .. 16.
    m: codebooks whose centroids are added, 1 .. 8.
    b: bits of one code, 1 .. 16; a codebook has 2**b centroids.
    g: group size: weights of a row that share one scale, a multiple of v; -1 for the whole row.
    signs: whether the codebook is that of all signs of up to 8 weights, as `all_signs` has them: then a code is a plane
        of bits (binary codes, as LUT-GEMM's), m = 1 and b = v.

    Written `m1v4g128`; `m1v4b6g128` where b is not 8; of signs `q1g128`, and `q1v4g128` where v is not 8.
    """

    v: int = 4
    m: int = 1
    b: int = 8
    g: int = -1
    signs: bool = False

    def __new__(cls, *text: object, **fields: object) -> Self:
        if text:
            one = text[0] if isinstance(text[0], str) else "m2v8g128"
            raise TypeError(
                f"CodebookConfig({', '.join(map(repr, text))}): takes v=, m=, b=, g=; "
                f"CodebookConfig.parse({one!r}) reads a text"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, low, high in (("v", 1, MAX_V), ("m", 1, MAX_M), ("b", 1, MAX_B)):
            value = self._integer(name)
            if not low <= value <= high:
                raise ValueError(f"{name}={value!r}: must be an integer from {low} to {high}")
        if self._integer("g") != -1 and self.g < 1:
            raise ValueError(f"g={self.g!r}: must be -1 (the whole row) or a positive multiple of v")
        if self.g != -1 and self.g % self.v:
            raise ValueError(f"g={self.g}: must be -1 or a multiple of v={self.v}")
        if not isinstance(self.signs, bool):
            raise ValueError(f"signs={self.signs!r}: must be True or False")
        if self.signs and (self.m != 1 or self.b != self.v or self.v > MAX_SIGNS):
            raise ValueError(f"m={self.m}, v={self.v}, b={self.b}: a codebook of signs has m=1, b=v, up to {MAX_SIGNS}")

    def _integer(self, name: str) -> int:
        """The field as a plain int (NumPy's integers become one)."""
        value = getattr(self, name)
        try:
            plain = operator.index(value)
        except TypeError:
            raise ValueError(f"{name}={value!r}: must be an integer") from None
        object.__setattr__(self, name, plain)
        return plain

    @classmethod
    def parse(cls, text: str) -> CodebookConfig:
        """Read `m1v4g128`, `m2v8b6g32`, `m1v4g-1`, `q1g128`; b is 8 and g is -1 where they are not named."""
        match = PATTERN.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"configuration {text!r}: expected {SYNTAX}")
        g = int(match["g"] or -1)
        if match["m"] is None:
            v = int(match["signs"] or MAX_SIGNS)
            return cls(m=1, v=v, b=v, g=g, signs=True)
        return cls(m=int(match["m"]), v=int(match["v"]), b=int(match["b"] or 8), g=g)

    def __str__(self) -> str:
        if self.signs:
            return self.planes(1)
        bits = "" if self.b == 8 else f"b{self.b}"
        return f"m{self.m}v{self.v}{bits}g{self.g}"

    def planes(self, count: int) -> str:
        """The text of so many planes of signs, each with scales of its own: `q2g128`."""
        return f"q{count}{'' if self.v == MAX_SIGNS else f'v{self.v}'}g{self.g}"

    @property
    def centroids(self) -> int:
        """Centroids in one codebook, 2**b."""
        return 1 << self.b

    def group_size(self, in_features: int) -> int:
        """Weights that share a scale in a row of `in_features`, g = -1 resolved."""
        return in_features if self.g == -1 else self.g

    def fitted(self, in_features: int) -> CodebookConfig:
        """With a group size that divides `in_features`: the largest multiple of v that does, up to g; itself where g is
        one, and where no multiple of v divides it."""
        if self.g == -1:
            return self
        divisors = (g for g in range(min(self.g, in_features), 0, -1) if in_features % g == 0 and g % self.v == 0)
        return replace(self, g=next(divisors, self.g))

    def check_shape(self, out_features: int, in_features: int) -> None:
        """Raise ValueError unless a matrix of this shape can be stored so."""
        if out_features < 1 or in_features < 1:
            raise ValueError(f"shape ({out_features}, {in_features}): both must be at least 1")
        if in_features % self.v:
            raise ValueError(f"in_features={in_features}: must be a multiple of the vector length v={self.v}")
        if self.g != -1 and in_features % self.g:
            raise ValueError(f"in_features={in_features}: must be a multiple of the group size g={self.g}")

    def bits_per_weight(self, out_features: int, in_features: int) -> float:
        """Average bits of one weight: codes, codebooks and scales (equation 1 of the paper)."""
        return float(Fraction(self.packed_bits(out_features, in_features), out_features * in_features))

    def packed_bits(self, out_features: int, in_features: int, parts: int = 1) -> int:
        """Bits of the packed weight (equation 1, before the division); `parts` sets of codebooks."""
        self.check_shape(out_features, in_features)
        codebooks = 16 * parts * self.m * self.centroids * self.v
        codes = self.b * self.m * out_features * (in_features // self.v)
        scales = 16 * out_features * (in_features // self.group_size(in_features))
        return codebooks + codes + scales


def all_signs(v: int) -> npt.NDArray[np.float16]:
    """The codebook [2**v, v] of all signs: +1 where the bit of that number is set in the centroid's, else -1."""
    return (2 * (np.arange(1 << v)[:, None] >> np.arange(v) & 1) - 1).astype(np.float16)
