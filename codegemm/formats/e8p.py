"""QuIP#'s weights: E8P lattice codes between two randomised Hadamard rotations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from codegemm.arrays import as_array
from codegemm.formats import e8p_codebook
from codegemm.formats.format import Format, register_format
from codegemm.formats.incoherent import (
    BITS,
    IncoherentConfig,
    IncoherentSpec,
    IncoherentWeight,
    check_lengths,
    check_sides,
)
from codegemm.formats.native import Stored
from codegemm.formats.weight import check_one_device, frozen


@dataclass(frozen=True)
class E8PConfig(IncoherentConfig):
    """Bits of a weight: 2, or 3 and 4 with a residual; `e8p`, `e8p3`, `e8p4`."""

    format_name = "e8p"


@dataclass(frozen=True)
class E8PSpec(IncoherentSpec):
    """Shape and bits (2, 3 or 4) of an E8PWeight; `vector_bits` is the size of one entry of SU and SV."""

    config_type = E8PConfig


class E8PCodes(NamedTuple):
    """Unpacked codes: uint16 [M, K/8], and the residual's (uint16 E8P codes, uint8 ball indices or None)."""

    main: npt.NDArray[np.uint16]
    residual: npt.NDArray | None


class E8PWeight(IncoherentWeight):
    """W = diag(SV) U_M What U_K^T diag(SU), with What the E8P grid's vectors (plus a residual / resid_scale).

    qidxs: int64 [M, K/32] (2 bit), [M, 3K/64] (3 bit) or [M, K/16] (4 bit), in QuIP#'s packing.
    SU, SV: float16 or float32 [K], [M]; signs or, after fine-tuning, any reals; the overall scale is in SV.
    resid_scale: divisor of the residual codebook, 3.45 (4 bit) and 2.04 (3 bit) unless given.

    M must be a multiple of 16 and K of 64, both with a Hadamard matrix. ValueError names what is wrong. Read-only.
    """

    format_name = "e8p"
    spec_type = E8PSpec
    tensor_names = ("qidxs", "SU", "SV")

    def __init__(
        self,
        qidxs: npt.ArrayLike,
        SU: npt.ArrayLike,
        SV: npt.ArrayLike,
        resid_scale: float | None = None,
    ) -> None:
        self.qidxs, self.SU, self.SV = (
            frozen(as_array(values, name)) for name, values in (("qidxs", qidxs), ("SU", SU), ("SV", SV))
        )
        check_one_device(self.arrays)
        self._spec = _infer_spec(self.qidxs, self.SU, self.SV)
        if resid_scale is None:
            resid_scale = DEFAULT_SCALE[self.bits]
        if not isinstance(resid_scale, Real) or not 1 / _MOST_SCALE <= resid_scale <= _MOST_SCALE:
            raise ValueError(f"resid_scale={resid_scale!r}: must be a number from 2**-64 to 2**64")
        self.resid_scale: float = float(resid_scale) if self.bits > 2 else 1.0

    @classmethod
    def from_stored(cls, description: Mapping[str, Any], tensor: Callable[[str], npt.NDArray]) -> Self:
        """The inverse of `stored`."""
        if description["codebook"] != "E8P":
            raise ValueError(f"codebook {description['codebook']!r}, must be 'E8P'")
        qidxs, su, sv = map(tensor, cls.tensor_names)
        weight = cls(qidxs, su, sv, description["resid_scale"])
        if weight.bits != description["bits"]:
            raise ValueError(f"qidxs are of {weight.bits} bits, the description says {description['bits']}")
        return weight

    def stored(self) -> Stored:
        """The arrays as they are; bits, resid_scale, shape."""
        description = {
            "codebook": "E8P", "bits": self.bits, "resid_scale": self.resid_scale, "shape": list(self.shape),
        }  # fmt: skip
        return Stored(self.to("cpu").arrays, description, version=1)

    @property
    def spec(self) -> E8PSpec:
        """Shape and bits."""
        return self._spec

    @property
    def options(self) -> dict[str, Any]:
        """The divisor of the residual codebook."""
        return {"resid_scale": self.resid_scale}

    def codes(self) -> E8PCodes:
        """The unpacked codes, on the CPU."""
        qidxs = self.to("cpu").qidxs
        words = self.shape[1] // 32
        main = e8p_codebook.unpack(qidxs[:, :words])
        if self.bits == 2:
            return E8PCodes(main, None)
        rest = np.ascontiguousarray(qidxs[:, words:])
        return E8PCodes(main, e8p_codebook.unpack(rest) if self.bits == 4 else rest.view(np.uint8))

    def lattice(self, dtype: npt.DTypeLike = np.float64) -> npt.NDArray:
        """What [M, K]: the decoded matrix between the rotations, in float32 or float64."""
        codes = self.codes()
        dense = e8p_codebook.grid().astype(dtype).take(codes.main, axis=0)
        if codes.residual is not None:
            points = e8p_codebook.grid() if self.bits == 4 else e8p_codebook.residual_grid()
            dense += (points.astype(dtype) / self.resid_scale).take(codes.residual, axis=0)
        return dense.reshape(self.shape)

    def core_blocks(self, dtype: np.dtype) -> Iterator[tuple[int, npt.NDArray]]:
        """What, whole."""
        yield 0, self.lattice(dtype)


class E8PFormat(Format[E8PConfig, E8PSpec, E8PWeight]):
    """QuIP#'s lattice codes."""

    config, weight = E8PConfig, E8PWeight
    syntax = "e8p, e8p3 or e8p4"
    examples = ("e8p", "e8p3", "e8p4")

    def parse(self, text: str) -> E8PConfig | None:
        return E8PConfig.parse(text)

    def spec(self, shape: tuple[int, int], config: E8PConfig) -> E8PSpec:
        check_shape(*shape)
        return E8PSpec(*shape, config.bits)

    def random(self, spec: E8PSpec, seed: int) -> E8PWeight:
        rng, (rows, columns) = np.random.default_rng(seed), spec.shape
        qidxs = rng.integers(-(1 << 63), 1 << 63, (rows, spec.bits * columns // 64), np.int64)
        su, sv = (rng.choice(np.array([-1, 1], np.float16), length) for length in (columns, rows))
        return E8PWeight(qidxs, su, sv)

    def describes(self, description: Mapping[str, Any]) -> bool:
        return "format" not in description and "codebook" in description


_MOST_SCALE = 2.0**64  # what it divides stays a number of float32
DEFAULT_SCALE = {2: 1.0, **e8p_codebook.DEFAULT_RESID_SCALE}


def check_shape(out_features: int, in_features: int) -> None:
    """Raise ValueError unless a matrix of this shape can be stored as E8P."""
    check_lengths("E8P", (out_features, in_features), (16, 64))


def _infer_spec(qidxs: Any, su: Any, sv: Any) -> E8PSpec:
    vector_bits = check_sides(su, sv)
    rows, columns = len(sv), len(su)
    check_shape(rows, columns)
    if qidxs.dtype != np.int64:
        raise ValueError(f"qidxs: dtype {qidxs.dtype}, must be int64")
    widths = {bits * columns // 64: bits for bits in BITS}
    if qidxs.ndim != 2 or len(qidxs) != rows or qidxs.shape[1] not in widths:
        raise ValueError(
            f"qidxs: shape {qidxs.shape}, must be [{rows}, n] with n = "
            + ", ".join(f"{n} ({bits} bit)" for n, bits in widths.items())
            + f" for SU of {columns} and SV of {rows}"
        )
    return E8PSpec(rows, columns, widths[qidxs.shape[1]], vector_bits)


register_format(E8PFormat())
