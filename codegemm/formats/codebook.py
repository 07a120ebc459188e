"""Weights stored as sums of codebook vectors, the format that CodeGEMM and AQLM share."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from codegemm.arrays import array_module, as_array
from codegemm.devices import Device, beside, device_of, to_host
from codegemm.formats import bits
from codegemm.formats.codebook_config import (
    MAX_B,
    MAX_M,
    MAX_SIGNS,
    MAX_V,
    PATTERN,
    SYNTAX,
    CodebookConfig,
    all_signs,
)
from codegemm.formats.format import Format, register_format
from codegemm.formats.native import Stored
from codegemm.formats.weight import Later, Spec, Weight, check_one_device, frozen, same

# Rows are decoded in blocks of about this many weights, so that a dense copy is never held twice.
_DECODE_BLOCK = 1 << 22


@dataclass(frozen=True)
class CodebookSpec(Spec):
    """Shape and configuration of a CodebookWeight; `part_rows` has the rows of each concatenated part."""

    config: CodebookConfig
    part_rows: tuple[int, ...]

    @property
    def packed_bits(self) -> int:
        """Equation 1 of the paper before its division, codebooks counted once for every part."""
        return self.config.packed_bits(*self.shape, parts=len(self.part_rows))

    @property
    def vectors(self) -> int:
        """k-vectors in a row, K / v."""
        return self.in_features // self.config.v

    @property
    def groups(self) -> int:
        """Scales of a row, K / g."""
        return self.in_features // self.config.group_size(self.in_features)

    @property
    def group_vectors(self) -> int:
        """k-vectors that share a scale."""
        return self.vectors // self.groups

    @property
    def code_bytes(self) -> int:
        """Of an unpacked code, 1 or 2."""
        return bits.code_dtype(self.config.b).itemsize


class CodebookWeight(Weight):
    """W[r, j*v:(j+1)*v] = scales[r, j*v//g] * sum over c of codebooks[c, codes[r, j, c]].

    codes: uint8 (b <= 8) or uint16 (b <= 16) [M, K/v, m].
    codebooks: float16 [m, 2**b, v]; [P, m, 2**b, v] for P concatenated parts.
    scales: float16 [M, K/g]; [M, 1] for one scale a row (g = -1).
    part_rows: rows of each part, in order, where the codebooks have a leading axis.

    The arrays are validated, then read-only; an array that was writeable is copied, unless it is on a GPU, where it
    must not be written to any more. A wrong shape, dtype or value raises ValueError.
    """

    format_name = "codebook"
    spec_type = CodebookSpec
    tensor_names = ("codes", "codebooks", "scales")

    def __init__(
        self,
        codes: npt.ArrayLike,
        codebooks: npt.ArrayLike,
        scales: npt.ArrayLike,
        part_rows: Sequence[int] | None = None,
    ) -> None:
        self.codes: Any = frozen(as_array(codes, "codes"))
        self._hold(codebooks, scales, (self.codes.shape, self.codes.dtype), part_rows)
        check_one_device(self.arrays)
        _check_codes(self.codes, self.config.b)

    @classmethod
    def from_packed(
        cls,
        packed: npt.NDArray[np.uint8],
        codebooks: npt.ArrayLike,
        scales: npt.ArrayLike,
        config: CodebookConfig,
        shape: tuple[int, int],
        part_rows: Sequence[int] | None = None,
    ) -> Self:
        """A weight whose codes are packed (`formats.bits`) and only unpacked, or read from disk, at their first use.

        packed: uint8 [M, ceil(K/v*m*b/8)]. The other arrays must spell `config`. ValueError names what is wrong.
        """
        config.check_shape(*shape)
        rows, vectors = shape[0], shape[1] // config.v
        expected = (rows, bits.row_bytes(vectors * config.m, config.b))
        if packed.shape != expected or packed.dtype != np.uint8:
            raise ValueError(f"codes: {packed.dtype} {packed.shape}, must be uint8 {expected}")
        unpacked = (rows, vectors, config.m)
        weight = cls.__new__(cls)
        weight._later["codes"] = Later(
            lambda: bits.unpack(packed, vectors * config.m, config.b).reshape(unpacked), kept=True
        )
        weight._hold(codebooks, scales, (unpacked, bits.code_dtype(config.b)), part_rows)
        mine, its = ((c.v, c.m, c.b, c.group_size(shape[1])) for c in (weight.config, config))
        if mine != its:
            raise ValueError(f"the tensors are {weight.config}, the description says {config}")
        return weight

    @classmethod
    def from_stored(cls, description: Mapping[str, Any], tensor: Callable[[str], npt.NDArray]) -> Self:
        """The inverse of `stored`; codes are unpacked at their first use."""
        config = CodebookConfig(**{key: description[key] for key in "vmbg"})
        packed, codebooks, scales = map(tensor, cls.tensor_names)
        rows, columns = description["shape"]
        return cls.from_packed(packed, codebooks, scales, config, (rows, columns), description.get("part_rows"))

    def stored(self) -> Stored:
        """Packed codes, codebooks, scales; v, m, b, g, shape, and the rows of each part of several."""
        host, config = self.to("cpu"), self.config
        packed = bits.pack(host.codes.reshape(len(host.codes), -1), config.b)
        description = {"v": config.v, "m": config.m, "b": config.b, "g": config.g, "shape": list(self.shape)}
        if host.codebooks.ndim == 4:
            description["part_rows"] = list(self.spec.part_rows)
        return Stored({"codes": packed, "codebooks": host.codebooks, "scales": host.scales}, description, version=1)

    def _hold(
        self,
        codebooks: npt.ArrayLike,
        scales: npt.ArrayLike,
        codes_like: tuple[tuple[int, ...], np.dtype],
        part_rows: Sequence[int] | None,
    ) -> None:
        self.codebooks: Any = frozen(as_array(codebooks, "codebooks"))
        self.scales: Any = frozen(as_array(scales, "scales"))
        self._spec = _infer_spec(*codes_like, self.codebooks, self.scales, part_rows)
        for name in ("codebooks", "scales"):
            check_finite(name, getattr(self, name))

    @cached_property
    def device(self) -> Device:
        """Where the arrays are: `cpu` or `cuda:<number>`."""
        return device_of(self.scales)

    @property
    def spec(self) -> CodebookSpec:
        """Shape and configuration."""
        return self._spec

    @property
    def config(self) -> CodebookConfig:
        """v, m, b and g, as the arrays' shapes say."""
        return self._spec.config

    @property
    def dtype(self) -> np.dtype:
        """float16, the dtype of the centroids and scales."""
        return np.dtype(self.codebooks.dtype)

    @property
    def options(self) -> dict[str, Any]:
        """The rows of each part, where there are several."""
        return {"part_rows": list(self._spec.part_rows)} if self.codebooks.ndim == 4 else {}

    @property
    def part_codebooks(self) -> Any:
        """The codebooks with the axis of parts: [P, m, 2**b, v]."""
        return self.codebooks.reshape(-1, *self.codebooks.shape[-3:])

    @property
    def part_starts(self) -> tuple[int, ...]:
        """First row of each part, and the number of rows last."""
        return tuple(np.cumsum([0, *self._spec.part_rows]).tolist())

    def core_blocks(self, dtype: np.dtype) -> Iterator[tuple[int, npt.NDArray]]:
        """The sums of centroids times scales, no block across two parts."""
        rows, codes = max(1, _DECODE_BLOCK // self.shape[1]), self.codes
        for part, codebooks in enumerate(self.part_codebooks.astype(dtype)):
            first, last = self.part_starts[part : part + 2]
            for start in range(first, last, rows):
                stop = min(start + rows, last)
                yield start, decode_rows(codes[start:stop], codebooks, self.scales[start:stop])

    def __getitem__(self, rows: slice) -> Self:
        """Rows r0:r1 as a weight of their own, on the same memory where kernels can load it from there."""
        if not isinstance(rows, slice):
            raise TypeError(f"a weight takes row slices only, like w[0:1024]; got {rows!r}")
        start, stop, step = rows.indices(self.shape[0])
        if step != 1 or stop <= start:
            raise ValueError(f"row slice {rows}: must take at least one row, with step 1")
        kept = [
            (part, min(stop, last) - max(start, first))
            for part, (first, last) in enumerate(zip(self.part_starts, self.part_starts[1:]))
            if max(start, first) < min(stop, last)
        ]
        books = self.part_codebooks[kept[0][0] : kept[-1][0] + 1]
        return type(self)(
            self.codes[start:stop],
            books if len(kept) > 1 else books[0],
            self.scales[start:stop],
            [count for _, count in kept] if len(kept) > 1 else None,
        )

    def _with_arrays(self, arrays: dict[str, Any]) -> Self:
        copy = type(self).__new__(type(self))
        copy.codes, copy.codebooks, copy.scales = (frozen(arrays[name]) for name in self.tensor_names)
        copy._spec = self._spec
        return copy

    @classmethod
    def join(cls, weights: Sequence[Self]) -> Self:
        """Each part keeps its own codebooks, be they of signs or others."""
        if len({replace(w.config, signs=False) for w in weights}) > 1:
            same("config", [w.config for w in weights])
        xp = array_module(weights[0].codes)
        with beside(weights[0].codes):
            return cls(
                xp.concatenate([w.codes for w in weights]),
                xp.concatenate([w.part_codebooks for w in weights]),
                xp.concatenate([w.scales for w in weights]),
                [rows for w in weights for rows in w.spec.part_rows],
            )

    def __repr__(self) -> str:
        parts = f", parts={list(self._spec.part_rows)}" if len(self._spec.part_rows) > 1 else ""
        return super().__repr__().replace(f"shape={self.shape}", f"shape={self.shape}{parts}")


class CodebookFormat(Format[CodebookConfig, CodebookSpec, CodebookWeight]):
    """Additive codebooks: AQLM's and CodeGEMM's weights."""

    config, weight = CodebookConfig, CodebookWeight
    syntax = SYNTAX
    examples = (
        "m1v4g32",
        "m2v8g-1",
        "m3v4b5g16",
        "m1v16b16g-1",
        "m2v4b11g32",
        "m1v1b1g1",
        "m1v8b6g-1",
        "q1g32",
        "q1v4g-1",
    )

    def parse(self, text: str) -> CodebookConfig | None:
        return CodebookConfig.parse(text) if PATTERN.fullmatch(text) else None

    def spec(self, shape: tuple[int, int], config: CodebookConfig) -> CodebookSpec:
        config.check_shape(*shape)
        if config.g == shape[1]:  # a weight can't tell the one scale of a row from the other
            config = replace(config, g=-1)
        return CodebookSpec(*shape, config, shape[:1])

    def fitted(self, config: CodebookConfig, in_features: int) -> CodebookConfig:
        return config.fitted(in_features)

    def random(self, spec: CodebookSpec, seed: int) -> CodebookWeight:
        rng, config, rows = np.random.default_rng(seed), spec.config, spec.out_features
        codes = rng.integers(0, config.centroids, (rows, spec.vectors, config.m), bits.code_dtype(config.b))
        books = rng.standard_normal((config.m, config.centroids, config.v), np.float32).astype(np.float16)
        return CodebookWeight(
            codes,
            all_signs(config.v)[None] if config.signs else books,
            rng.uniform(0.5, 1.5, (rows, spec.groups)).astype(np.float16),
        )

    def describes(self, description: Mapping[str, Any]) -> bool:
        return all(description.get(key) is None for key in ("format", "codebook", "block", "offsets", "terms"))


def decode(codes: npt.NDArray, codebooks: npt.NDArray) -> npt.NDArray:
    """The sums [..., v] of the centroids that codes [..., m] name in codebooks [m, 2**b, v], in their dtype."""
    total = _chosen(codebooks[0], codes[..., 0])
    for c in range(1, len(codebooks)):
        total += _chosen(codebooks[c], codes[..., c])
    return total


def _chosen(table: npt.NDArray, rows: npt.NDArray) -> npt.NDArray:
    """table[rows]: of NumPy's several times as fast by `take`, which other libraries' arrays have otherwise."""
    return table.take(rows, axis=0) if isinstance(table, np.ndarray) else table[rows]


def decode_rows(codes: npt.NDArray, codebooks: npt.NDArray, scales: npt.NDArray) -> npt.NDArray:
    """Dense rows from codes [R, K/v, m], codebooks [m, 2**b, v] and scales [R, K/g], in the codebooks' dtype."""
    groups = decode(codes, codebooks).reshape(*scales.shape, -1)
    groups *= scales.astype(groups.dtype, copy=False)[..., None]
    return groups.reshape(len(codes), -1)


def _infer_spec(
    codes_shape: tuple[int, ...],
    codes_dtype: np.dtype,
    codebooks: Any,
    scales: Any,
    part_rows: Sequence[int] | None,
) -> CodebookSpec:
    """The configuration that the arrays' shapes and dtypes spell, or ValueError."""
    if len(codes_shape) != 3:
        raise ValueError(f"codes: shape {codes_shape}, must be [out_features, in_features/v, m]")
    if codebooks.ndim not in (3, 4):
        raise ValueError(f"codebooks: shape {codebooks.shape}, must be [m, 2**b, v]")
    if scales.ndim != 2:
        raise ValueError(f"scales: shape {scales.shape}, must be [out_features, in_features/g]")
    for name, array in (("codebooks", codebooks), ("scales", scales)):
        if array.dtype != np.float16:
            raise ValueError(f"{name}: dtype {array.dtype}, must be float16")

    m, centroids, v = codebooks.shape[-3:]
    rows, vectors, last = codes_shape
    b = centroids.bit_length() - 1
    if not 1 <= v <= MAX_V or not 1 <= m <= MAX_M or not 1 <= b <= MAX_B or centroids != 1 << b:
        raise ValueError(
            f"codebooks: shape {codebooks.shape}, must be [m, 2**b, v] with m up to {MAX_M}, "
            f"b from 1 to {MAX_B} and v up to {MAX_V}"
        )
    if last != m:
        raise ValueError(f"codes: shape {codes_shape}, the last must be m={m} as in the codebooks")
    if codes_dtype != bits.code_dtype(b):
        raise ValueError(f"codes: dtype {codes_dtype}, must be {bits.code_dtype(b)} for b={b}")
    if rows < 1 or vectors < 1:
        raise ValueError(f"codes: shape {codes_shape}, no axis may be empty")

    groups = scales.shape[1]
    if len(scales) != rows or groups < 1 or vectors % groups:
        raise ValueError(
            f"scales: shape {scales.shape}, must be [{rows}, n] with n a divisor of the {vectors} vectors of a row"
        )
    g = -1 if groups == 1 else vectors * v // groups
    config = CodebookConfig(v=v, m=m, b=b, g=g, signs=_are_signs(codebooks))

    parts = 1 if codebooks.ndim == 3 else len(codebooks)
    if part_rows is None:
        if codebooks.ndim == 4:
            raise ValueError("codebooks: four axes need part_rows, the rows of each part")
        part_rows = (rows,)
    part_rows = tuple(operator.index(count) for count in part_rows)
    if len(part_rows) != parts or sum(part_rows) != rows or min(part_rows, default=0) < 1:
        raise ValueError(f"part_rows: {part_rows}, must be {parts} positive numbers that sum to {rows}")
    return CodebookSpec(rows, vectors * v, config, part_rows)


def _are_signs(codebooks: Any) -> bool:
    """Whether every part's codebook is that of all signs, in their order."""
    *_, m, centroids, v = codebooks.shape
    if m != 1 or v > MAX_SIGNS or centroids != 1 << v:
        return False
    return bool((to_host(codebooks) == all_signs(v)).all())


def _check_codes(codes: Any, b: int) -> None:
    if b in (8, 16):
        return
    with beside(codes):
        largest = int(codes.max())
    if largest >> b:
        raise ValueError(f"codes: largest is {largest}, must be below 2**b = {1 << b}")


def check_finite(name: str, array: Any) -> None:
    """Raise ValueError, naming the first place, where a float array has a NaN or an infinity."""
    # The sum of magnitudes is finite in float64 only if every half or single is: one pass, no mask.
    with beside(array):
        total = float(abs(array).sum(dtype=np.float64))
    if np.isfinite(total):
        return
    flat = np.asarray(array.get() if hasattr(array, "get") else array)
    where = tuple(int(i) for i in np.argwhere(~np.isfinite(flat))[0])
    raise ValueError(f"{name}: {flat[where]} at {list(where)}, must be finite")


register_format(CodebookFormat())
