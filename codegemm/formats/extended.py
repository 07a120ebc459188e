"""Codebook weights with more around them: a rotation of x, offsets of groups, several scales a group.

    W = (fold(C) + offsets) @ R

C [M, T*K] is what the core says, an ordinary CodebookWeight. `fold` adds its T terms [M, K], each with codes and scales
of its own; offsets are one number a group; R is a randomised Hadamard rotation by blocks. A product is one with the
core:

    x' = R x        y = [x', x', ...] @ C^T + (sums of x' over groups) @ offsets^T
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from codegemm.arrays import array_module, as_array
from codegemm.devices import Device, beside
from codegemm.formats import bits, codebook
from codegemm.formats.codebook import CodebookSpec, CodebookWeight, check_finite
from codegemm.formats.hadamard import check_block, default_block, unrotate_blocks
from codegemm.formats.native import Stored
from codegemm.formats.weight import Spec, Weight, check_one_device, frozen

OFFSETS = ("", "scaled", "added")


@dataclass(frozen=True)
class ExtendedSpec(Spec):
    """Shape and configuration of an ExtendedWeight.

    core: of its CodebookWeight [M, terms * K]. block: of the rotation, 0 without one. offsets: `scaled` (times their
    group's scale), `added` (as they are) or empty.
    """

    core: CodebookSpec
    block: int = 0
    offsets: str = ""
    terms: int = 1

    @property
    def packed_bits(self) -> int:
        """The core's, a bit for each sign and 16 for each offset."""
        signs = self.in_features if self.block else 0
        offsets = 16 * self.out_features * self.groups if self.offsets else 0
        return self.core.packed_bits + signs + offsets

    @property
    def groups(self) -> int:
        """Groups of a row of W, K / g."""
        return self.core.groups // self.terms

    @property
    def extensions(self) -> str:
        """What the weight has beyond its core, as the name of its configuration ends: `+rotated+offsets+terms3`."""
        usual = self.block == default_block(self.in_features)
        rotated = "" if not self.block else "+rotated" if usual else f"+rotated{self.block}"
        offsets = {"": "", "scaled": "+offsets", "added": "+added"}[self.offsets]
        return rotated + offsets + (f"+terms{self.terms}" if self.terms > 1 else "")


def extended_spec(core: CodebookSpec, block: int = 0, offsets: str = "", terms: int = 1) -> ExtendedSpec:
    """The spec of a weight around `core`; ValueError where the parts don't fit."""
    try:
        terms = operator.index(terms)
    except TypeError:
        raise ValueError(f"terms={terms!r}: must be an integer") from None
    rows, columns = core.shape
    if terms < 1 or columns % terms:
        raise ValueError(f"terms={terms}: must be at least 1 and divide the core's {columns} columns")
    if terms > 1 and core.groups % terms:
        raise ValueError(
            f"terms={terms}: must divide the core's {core.groups} groups of a row: no scale is of two terms"
        )
    if offsets not in OFFSETS:
        raise ValueError(f"offsets {offsets!r}: must be one of {', '.join(map(repr, OFFSETS))}")
    if offsets == "scaled" and terms > 1:
        raise ValueError(f"terms={terms}: offsets can't be scaled by several scales; they are added (scaled=False)")
    if block:
        block = check_block(block, columns // terms)
    return ExtendedSpec(rows, columns // terms, core, block, offsets, terms)


class ExtendedWeight(Weight):
    """W = (sum of the core's terms + offsets) @ R, with R = (blocks of Hadamard matrices / sqrt(block)) @ diag(signs).

    core: CodebookWeight [M, terms * K].
    signs: +-1 [K] of any real dtype, kept as int8; None without a rotation.
    block: of the rotation, a power of two up to 4096 that divides K; the largest such unless given.
    offsets: float16 [M, K/g], added to the weights of a group: times the group's scale where `scaled` (as it is unless
        given, where there is one term), else as they are.
    terms: parts of K columns whose sum is meant: codes and scales of each its own, codebooks shared.

    All on one device, read-only. A wrong shape, dtype or value raises ValueError.
    """

    spec_type = ExtendedSpec
    tensor_names = (*CodebookWeight.tensor_names, "signs", "offsets")

    def __init__(
        self,
        core: CodebookWeight,
        *,
        signs: npt.ArrayLike | None = None,
        block: int | None = None,
        offsets: npt.ArrayLike | None = None,
        scaled: bool | None = None,
        terms: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(core, CodebookWeight):
            raise TypeError(f"core: {type(core).__name__}, must be a CodebookWeight")
        if signs is None and block is not None:
            raise ValueError(f"block={block}: there is no rotation without signs")
        if offsets is None and scaled is not None:
            raise ValueError(f"scaled={scaled}: there are no offsets")
        kind = "" if offsets is None else "scaled" if scaled or (scaled is None and terms == 1) else "added"
        self.core = core
        self._spec = extended_spec(core.spec, 0, kind, terms)
        if signs is not None:
            block_size = default_block(self._spec.in_features) if block is None else block
            self._spec = extended_spec(core.spec, check_block(block_size, self._spec.in_features), kind, terms)
        self.signs: Any = None if signs is None else frozen(_as_signs(as_array(signs), self._spec.in_features))
        self.offsets: Any = None if offsets is None else frozen(_as_offsets(as_array(offsets), self._spec))
        check_one_device({"scales": core.scales} | self._around)

    @classmethod
    def from_stored(cls, description: Mapping[str, Any], tensor: Callable[[str], npt.NDArray]) -> Self:
        """The inverse of `stored`; codes are unpacked at their first use."""
        rows, columns = description["shape"]
        terms, block, offsets = (description.get(key) for key in ("terms", "block", "offsets"))
        terms = 1 if terms is None else terms
        core = CodebookWeight.from_stored({**description, "shape": (rows, columns * terms)}, tensor)
        if offsets not in (None, "scaled", "added"):
            raise ValueError(f"offsets {offsets!r}, must be 'scaled' or 'added'")
        return cls(
            core,
            signs=None if block is None else _unpack_signs(tensor("signs"), columns),
            block=block,
            offsets=tensor("offsets") if offsets else None,
            scaled=offsets == "scaled" if offsets else None,
            terms=terms,
        )

    def stored(self) -> Stored:
        """The core's, signs as bits, offsets; `block` and `offsets` only where there are such, the whole's shape."""
        host, spec = self.to("cpu"), self.spec
        core = host.core.stored()
        tensors = core.tensors | host._around
        if host.signs is not None:
            tensors["signs"] = bits.pack(host.signs[None] < 0, 1)[0]
        around = {"block": spec.block, "offsets": spec.offsets}
        description = core.description | {"shape": list(spec.shape), "terms": spec.terms}
        return Stored(tensors, description | {key: value for key, value in around.items() if value}, version=2)

    @property
    def spec(self) -> ExtendedSpec:
        """Shape, configuration and what is around the core."""
        return self._spec

    @cached_property
    def device(self) -> Device:
        """Where the arrays are: `cpu` or `cuda:<number>`."""
        return self.core.device

    @property
    def arrays(self) -> dict[str, Any]:
        """The core's, and signs and offsets where there are such."""
        return self.core.arrays | self._around

    @property
    def _around(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("signs", "offsets") if getattr(self, name) is not None}

    def addends(self, dtype: npt.DTypeLike, rows: slice = slice(None)) -> Any:
        """What is added to the weights of each group, [rows, K/g] in float32 or float64, where the arrays are."""
        with beside(self.offsets):
            addends = self.offsets[rows].astype(dtype)
            return addends * self.core.scales[rows].astype(dtype) if self.spec.offsets == "scaled" else addends

    def dequantize(self, dtype: npt.DTypeLike = np.float32) -> npt.NDArray:
        """The dense matrix [M, K], rotated back; computed in float64 for float64, else in float32."""
        dense = np.empty(self.shape, dtype)
        for start, block in self.dense_blocks(dense.dtype):
            dense[start : start + len(block)] = block
        return dense

    def dense_blocks(self, dtype: npt.DTypeLike) -> Iterator[tuple[int, npt.NDArray]]:
        """The dense matrix in blocks of whole rows: (first row, float32 or float64 rows)."""
        host, spec = self.to("cpu"), self.spec
        for start, block in host.core.dense_blocks(dtype):
            rows = block.reshape(len(block), spec.terms, spec.in_features).sum(1) if spec.terms > 1 else block
            if host.offsets is not None:
                addends = host.addends(rows.dtype, slice(start, start + len(rows)))
                rows = (rows.reshape(*addends.shape, -1) + addends[..., None]).reshape(rows.shape)
            yield start, rows if host.signs is None else unrotate_blocks(rows, host.signs, spec.block)

    def __getitem__(self, rows: slice) -> Self:
        """Rows r0:r1 as a weight of their own, on the same memory where kernels can load it from there."""
        core = self.core[rows]
        return self._around_core(core, self.signs, None if self.offsets is None else self.offsets[rows])

    def _with_arrays(self, arrays: dict[str, Any]) -> Self:
        core = self.core._with_arrays({name: arrays[name] for name in ("codes", "codebooks", "scales")})
        return self._around_core(core, arrays.get("signs"), arrays.get("offsets"))

    def _around_core(self, core: CodebookWeight, signs: Any, offsets: Any) -> Self:
        """The same extensions, with arrays that fit."""
        weight = object.__new__(type(self))
        Weight.__init__(weight)
        weight.core, weight._spec = core, replace(self.spec, out_features=core.shape[0], core=core.spec)
        weight.signs, weight.offsets = (None if array is None else frozen(array) for array in (signs, offsets))
        return weight

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.core, self._around, _described(self.spec))

    def __repr__(self) -> str:
        return (
            f"ExtendedWeight({self.core.config}{self.spec.extensions}, shape={self.shape}, "
            f"{self.bits_per_weight:.3f} bits/weight, {self.device})"
        )


def concat(weights: Sequence[Weight]) -> Any:
    """The rows of several weights that share x (q, k and v; gate and up) as one weight, multiplied in one call.

    CodebookWeights of the same in_features, v, m, b, g and device, each of which keeps its own codebooks; or
    ExtendedWeights with such cores that also have the same signs, block, terms and kind of offsets. Raises TypeError
    for other weights, ValueError for those that don't fit.
    """
    weights = list(weights)
    if not any(isinstance(weight, ExtendedWeight) for weight in weights):
        return codebook.concat(weights)  # type: ignore[arg-type]
    parts = [weight for weight in weights if isinstance(weight, ExtendedWeight)]
    if len(parts) < len(weights):
        other = next(weight for weight in weights if not isinstance(weight, ExtendedWeight))
        raise TypeError(f"concat: an ExtendedWeight can't be joined with a {type(other).__name__}")
    first = parts[0]
    for what in ("in_features", "block", "offsets", "terms"):
        values = {getattr(w.spec, what) for w in parts}
        if len(values) > 1:
            raise ValueError(f"concat: {what} must be the same, got {sorted(map(str, values))}")
    core = codebook.concat([w.core for w in parts])
    if first.signs is not None and any((_host(first.signs) != _host(w.signs)).any() for w in parts[1:]):
        raise ValueError("concat: signs must be the same, for all parts multiply one rotated x")
    offsets = None
    if first.offsets is not None:
        with beside(first.offsets):
            offsets = array_module(first.offsets).concatenate([w.offsets for w in parts])
    return first._around_core(core, first.signs, offsets)


def _described(spec: ExtendedSpec) -> dict[str, Any]:
    """The constructor's arguments beside the arrays."""
    return {
        "block": spec.block or None,
        "scaled": spec.offsets == "scaled" if spec.offsets else None,
        "terms": spec.terms,
    }


def _rebuild(cls: type[ExtendedWeight], core: CodebookWeight, around: dict[str, Any], described: dict[str, Any]) -> Any:
    return cls(core, **around, **described)


def _host(array: Any) -> npt.NDArray:
    return np.asarray(array.get() if hasattr(array, "get") else array)


def _as_signs(signs: Any, in_features: int) -> Any:
    """int8 [K] of +-1."""
    if signs.shape != (in_features,):
        raise ValueError(f"signs: shape {signs.shape}, must be ({in_features},), one a column of W")
    if signs.dtype.kind not in "if":
        raise ValueError(f"signs: dtype {signs.dtype}, must be of signed numbers")
    host = _host(signs)
    bad = np.flatnonzero(abs(host) != 1)
    if len(bad):
        raise ValueError(f"signs: {host[bad[0]]} at {bad[0]}, must be 1 or -1")
    with beside(signs):
        return signs.astype(np.int8, copy=False)


def _unpack_signs(packed: npt.NDArray, columns: int) -> npt.NDArray:
    """int8 [K] of +-1 from a file's uint8 [ceil(K/8)]."""
    expected = (bits.row_bytes(columns, 1),)
    if packed.dtype != np.uint8 or packed.shape != expected:
        raise ValueError(f"signs: {packed.dtype} {packed.shape}, must be uint8 {expected}")
    return 1 - 2 * bits.unpack(packed[None], columns, 1)[0].astype(np.int8)


def _as_offsets(offsets: Any, spec: ExtendedSpec) -> Any:
    expected = (spec.out_features, spec.groups)
    if offsets.shape != expected:
        raise ValueError(f"offsets: shape {offsets.shape}, must be {expected}, one a group")
    if offsets.dtype != np.float16:
        raise ValueError(f"offsets: dtype {offsets.dtype}, must be float16")
    check_finite("offsets", offsets)
    return offsets
