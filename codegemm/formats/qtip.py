"""QTIP's weights (Tseng et al., 2024): trellis codes between two randomised Hadamard rotations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.arrays import as_array
from codegemm.formats import trellis
from codegemm.formats.codebook import check_finite
from codegemm.formats.format import Format, register_format
from codegemm.formats.incoherent import (
    BITS,
    IncoherentConfig,
    IncoherentSpec,
    IncoherentWeight,
    check_lengths,
    check_sides,
)
from codegemm.formats.weight import check_one_device, frozen

_TABLE_SHAPE = (trellis.TABLE, trellis.PAIR)
_DECODED = 1 << 12  # tiles at a time


@dataclass(frozen=True)
class QtipConfig(IncoherentConfig):
    """Bits of a weight: `qtip` (2), `qtip3`, `qtip4`."""

    format_name = "qtip"


@dataclass(frozen=True)
class QtipSpec(IncoherentSpec):
    """Shape and bits (2, 3 or 4) of a QtipWeight; `vector_bits` is the size of one entry of SU and SV."""

    vector_bits: tuple[int, int] = (16, 32)
    config_type = QtipConfig

    @property
    def packed_bits(self) -> int:
        """The trellis' codes, its table, SU and SV."""
        return super().packed_bits + 16 * trellis.TABLE * trellis.PAIR


class QtipWeight(IncoherentWeight):
    """W = diag(SV) U_M core U_K^T diag(SU), the core of trellis codes (`codegemm.formats.trellis`).

    trellis: int16 [M/16 * K/16, 16k], k = 2, 3 or 4 bits a weight, in the order of QTIP's kernels.
    tlut: float16 [512, 2], the pairs of weights.
    SU, SV: float16 or float32 [K], [M]; signs or, after fine-tuning, any reals; the overall scale is in SV.

    M and K must be multiples of 32, both with a Hadamard matrix. ValueError names what is wrong. Read-only.
    """

    format_name = "qtip"
    spec_type = QtipSpec
    tensor_names = ("trellis", "tlut", "SU", "SV")

    def __init__(self, trellis: npt.ArrayLike, tlut: npt.ArrayLike, SU: npt.ArrayLike, SV: npt.ArrayLike) -> None:
        named = {"trellis": trellis, "tlut": tlut, "SU": SU, "SV": SV}
        self.trellis, self.tlut, self.SU, self.SV = (frozen(as_array(values, name)) for name, values in named.items())
        check_one_device(self.arrays)
        self._spec = _infer_spec(self.trellis, self.tlut, self.SU, self.SV)

    @property
    def spec(self) -> QtipSpec:
        """Shape and bits."""
        return self._spec

    def states(self) -> npt.NDArray[np.uint16]:
        """The trellis' states [tiles, 128], tiles in the order of rows, on the CPU."""
        return trellis.states(trellis.unpack(self.to("cpu").trellis, self.shape), self.bits)

    def core_blocks(self, dtype: np.dtype) -> Iterator[tuple[int, npt.NDArray]]:
        """The decoded matrix between the rotations."""
        host = self.to("cpu")
        pairs, columns = trellis.grid(host.tlut, dtype), self.shape[1]
        words = trellis.unpack(host.trellis, self.shape)
        per_row = columns // trellis.TILE
        step = max(1, _DECODED // per_row)
        for first in range(0, self.shape[0] // trellis.TILE, step):
            states = trellis.states(words[first * per_row : (first + step) * per_row], self.bits)
            rows = len(states) // per_row * trellis.TILE
            yield first * trellis.TILE, trellis.untile(pairs.take(states, axis=0), (rows, columns))


class QtipFormat(Format[QtipConfig, QtipSpec, QtipWeight]):
    """QTIP's trellis codes."""

    config, weight = QtipConfig, QtipWeight
    syntax = "qtip, qtip3 or qtip4"
    examples = ("qtip", "qtip3", "qtip4")

    def parse(self, text: str) -> QtipConfig | None:
        return QtipConfig.parse(text)

    def spec(self, shape: tuple[int, int], config: QtipConfig) -> QtipSpec:
        check_shape(*shape)
        return QtipSpec(*shape, config.bits)

    def random(self, spec: QtipSpec, seed: int) -> QtipWeight:
        rng, (rows, columns) = np.random.default_rng(seed), spec.shape
        codes = rng.integers(-(1 << 15), 1 << 15, _trellis_shape(rows, columns, spec.bits), np.int16)
        table = rng.standard_normal(_TABLE_SHAPE).astype(np.float16)
        su = rng.choice(np.array([-1, 1], np.float16), columns)
        return QtipWeight(codes, table, su, rng.choice(np.array([-1, 1], np.float32), rows))


def check_shape(out_features: int, in_features: int) -> None:
    """Raise ValueError unless a matrix of this shape can be stored as QTIP's."""
    check_lengths("QTIP", (out_features, in_features), (trellis.BLOCK, trellis.BLOCK))


def _trellis_shape(rows: int, columns: int, bits: int) -> tuple[int, int]:
    return rows * columns // trellis.TILE**2, trellis.TILE * bits


def _infer_spec(codes: Any, table: Any, su: Any, sv: Any) -> QtipSpec:
    vector_bits = check_sides(su, sv)
    rows, columns = len(sv), len(su)
    check_shape(rows, columns)
    if codes.dtype != np.int16:
        raise ValueError(f"trellis: dtype {codes.dtype}, must be int16")
    shapes = {_trellis_shape(rows, columns, bits): bits for bits in BITS}
    if codes.shape not in shapes:
        expected = ", ".join(f"{shape} ({bits} bit)" for shape, bits in shapes.items())
        raise ValueError(
            f"trellis: shape {codes.shape}, must be one of {expected} for SU of {columns} and SV of {rows}"
        )
    if table.dtype != np.float16:
        raise ValueError(f"tlut: dtype {table.dtype}, must be float16")
    if table.shape != _TABLE_SHAPE:
        raise ValueError(f"tlut: shape {table.shape}, must be {_TABLE_SHAPE}")
    check_finite("tlut", table)
    return QtipSpec(rows, columns, shapes[codes.shape], vector_bits)


register_format(QtipFormat())
