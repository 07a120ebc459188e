"""Weights that are a core with more around it: columns in another order, a rotation of x, offsets of groups, several
scales a group.

    W = (fold(C) + offsets) @ R @ P

C [M, T*K] is the core, a weight of any other format. `fold` adds its T terms [M, K], each with codes and scales of its
own; offsets are one number a group; R is a randomised Hadamard rotation by blocks; P is a permutation, so that columns
of W that share a scale may lie anywhere. A product is one with the core:

    x' = R P x      y = [x', x', ...] @ C^T + (sums of x' over groups) @ offsets^T
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from codegemm.arrays import array_module, as_array
from codegemm.counts import count
from codegemm.devices import Device, beside, to_host
from codegemm.formats import bits
from codegemm.formats.codebook import check_finite
from codegemm.formats.codebook_config import CodebookConfig
from codegemm.formats.format import Format, described, fitted, format_of, parse, register_format, spec_of
from codegemm.formats.native import Stored
from codegemm.formats.rotation import Rotation, check_block, default_block
from codegemm.formats.weight import Spec, Weight, check_one_device, concat, frozen, same

OFFSETS = ("", "scaled", "added")
USUAL = -1  # the block of a rotation that the shape gives

_PATTERN = re.compile(
    r"(?P<core>.*?)(?P<ordered>\+ordered)?(\+rotated(?P<block>[0-9]{0,9}))?(\+(?P<offsets>offsets|added))?"
    r"(\+terms(?P<terms>[0-9]{1,9}))?"
)
_PLANES = re.compile(r"q([0-9]{1,9})((?:v[0-9]{1,9})?(?:g(?:-1|[0-9]{1,9}))?(?:\+.*)?)")
_EXTENSIONS = "+ordered, +rotated[<block>], +offsets or +added, +terms<number>"
_AROUND = ("terms", "block", "offsets", "ordered")  # of a description
_WORDS = {"": "", "scaled": "+offsets", "added": "+added"}


@dataclass(frozen=True)
class TransformedConfig:
    """A core's configuration and what stands around it: `m1v4g128+rotated`, `e8p+added`; of several planes of signs,
    which are terms, `q2g128`.

    block: of the rotation, `USUAL` for the one that the shape gives, 0 without one. offsets: `scaled` (`+offsets`,
    times their group's scale), `added` (as they are) or empty. terms: that are added up. ordered: whether the core has
    its columns in another order.
    """

    core: Any
    block: int = 0
    offsets: str = ""
    terms: int = 1
    ordered: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "core", parse(self.core))
        if isinstance(self.core, TransformedConfig):
            raise ValueError(f"core '{self.core}': must be of another format")
        if self.offsets not in OFFSETS:
            raise ValueError(f"offsets {self.offsets!r}: must be one of {', '.join(map(repr, OFFSETS))}")
        for name, least in (("block", USUAL), ("terms", 1)):
            object.__setattr__(self, name, count(name, getattr(self, name), least))
        if not isinstance(self.ordered, bool):
            raise ValueError(f"ordered={self.ordered!r}: must be True or False")

    def __str__(self) -> str:
        rotated = "" if not self.block else "+rotated" if self.block == USUAL else f"+rotated{self.block}"
        ordered, terms = "+ordered" * self.ordered, f"+terms{self.terms}" if self.terms > 1 else ""
        core = str(self.core)
        if self.of_signs:
            core, terms = self.core.planes(self.terms), ""
        return f"{core}{ordered}{rotated}{_WORDS[self.offsets]}{terms}"

    @property
    def of_signs(self) -> bool:
        """Whether its terms are planes of signs."""
        return isinstance(self.core, CodebookConfig) and self.core.signs


@dataclass(frozen=True)
class TransformedSpec(Spec):
    """Shape and configuration of a TransformedWeight.

    core: of its core [M, terms * K]. block: of the rotation, 0 without one. offsets, terms, ordered: as the
    configuration's.
    """

    core: Spec
    block: int = 0
    offsets: str = ""
    terms: int = 1
    ordered: bool = False

    @property
    def config(self) -> TransformedConfig:
        """The configuration; the block is told where it isn't the usual one."""
        block = USUAL if self.block and self.block == default_block(self.in_features) else self.block
        return TransformedConfig(self.core.config, block, self.offsets, self.terms, self.ordered)

    @property
    def packed_bits(self) -> int:
        """The core's, a bit for each sign, 16 for each offset and 32 for each column's place."""
        signs = self.in_features if self.block else 0
        offsets = 16 * self.out_features * self.groups if self.offsets else 0
        return self.core.packed_bits + signs + offsets + 32 * self.in_features * self.ordered

    @property
    def groups(self) -> int:
        """Groups of a row of W, K / g."""
        return self.core.groups // self.terms

    @property
    def folded(self) -> TransformedSpec:
        """The same with the terms inside, as a core [M, K] of terms alone."""
        if self.terms == 1:
            return self
        return replace(self, core=TransformedSpec(*self.shape, self.core, terms=self.terms), terms=1)


def transformed_spec(
    core: Spec, block: int = 0, offsets: str = "", terms: int = 1, ordered: bool = False
) -> TransformedSpec:
    """The spec of a weight around `core`; ValueError where the parts don't fit."""
    try:
        terms = operator.index(terms)
    except TypeError:
        raise ValueError(f"terms={terms!r}: must be an integer") from None
    if set(format_of(core).weight.tensor_names) & set(TransformedWeight.tensor_names):
        raise ValueError(f"{core.name}: it has signs, offsets or an order of its own, and nothing can stand around it")
    rows, columns = core.shape
    if terms < 1 or columns % terms:
        raise ValueError(f"terms={terms}: must be at least 1 and divide the core's {columns} columns")
    if terms > 1 and core.groups % terms:
        raise ValueError(
            f"terms={terms}: must divide the core's {core.groups} groups of a row: no scale is of two terms"
        )
    if offsets == "scaled" and terms > 1:
        raise ValueError(f"terms={terms}: offsets can't be scaled by several scales; they are added (scaled=False)")
    if offsets == "scaled" and not has_scales(core):
        raise ValueError(f"offsets of {core.name}: it has no scales; they are added (scaled=False)")
    if block:
        block = check_block(block, columns // terms)
    return TransformedSpec(rows, columns // terms, core, block, offsets, terms, ordered)


def has_scales(core: Spec) -> bool:
    """Whether weights of this kind have `scales` [M, groups], by which offsets may be multiplied."""
    return "scales" in format_of(core).weight.tensor_names


class TransformedWeight(Weight):
    """W = (sum of the core's terms + offsets) @ R @ P, R = (blocks of Hadamard matrices / sqrt(block)) @ diag(signs).

    core: Weight [M, terms * K] of any format but this one.
    signs: +-1 [K] of any real dtype, kept as int8; None without a rotation.
    block: of the rotation, a power of two up to 4096 that divides K; the largest such unless given.
    offsets: float16 [M, K/g], added to the weights of a group (of a whole row where the core has no groups): times the
        group's scale where `scaled` (as it is unless given, where there are scales of one term), else as they are.
    terms: parts of K columns whose sum is meant: codes and scales of each its own, codebooks shared.
    order: a permutation of 0 .. K-1 of any integer dtype, kept as int32: P makes x[..., order] of x, before it is
        rotated, so that W[:, order] is the product of the rest. None where columns lie in order.

    All on one device, read-only. A wrong shape, dtype or value raises ValueError.
    """

    format_name = "transformed"
    spec_type = TransformedSpec
    tensor_names = ("signs", "offsets", "order")  # beside the core's

    def __init__(
        self,
        core: Weight,
        *,
        signs: npt.ArrayLike | None = None,
        block: int | None = None,
        offsets: npt.ArrayLike | None = None,
        scaled: bool | None = None,
        terms: int = 1,
        order: npt.ArrayLike | None = None,
    ) -> None:
        if not isinstance(core, Weight) or isinstance(core, TransformedWeight):
            raise TypeError(f"core: {type(core).__name__}, must be a weight of another format")
        if set(core.tensor_names) & set(self.tensor_names):
            raise TypeError(
                f"core: {type(core).__name__} has {' or '.join(self.tensor_names)}, which stand around a core"
            )
        if signs is None and block is not None:
            raise ValueError(f"block={block}: there is no rotation without signs")
        if offsets is None and scaled is not None:
            raise ValueError(f"scaled={scaled}: there are no offsets")
        if scaled is None:
            scaled = terms == 1 and has_scales(core.spec)
        expected = core.shape[0], core.spec.groups
        scales = getattr(core, "scales", None) if offsets is not None and scaled else None
        if scales is not None and scales.shape != expected:
            raise ValueError(f"core: its spec says scales of shape {expected}, it has {scales.shape}")
        self.core = core
        self._spec = transformed_spec(core.spec, 0, "" if offsets is None else "scaled" if scaled else "added", terms)
        if signs is not None:
            block = default_block(self._spec.in_features) if block is None else block
            self._spec = replace(self._spec, block=check_block(block, self._spec.in_features))
        self.signs: Any = None if signs is None else frozen(_as_signs(as_array(signs, "signs"), self._spec.in_features))
        self.offsets: Any = None if offsets is None else frozen(_as_offsets(as_array(offsets, "offsets"), self._spec))
        self._spec = replace(self._spec, ordered=order is not None)
        self.order: Any = None if order is None else frozen(_as_order(as_array(order, "order"), self._spec.in_features))
        check_one_device({"core": next(iter(core.arrays.values()))} | self._around)

    @classmethod
    def from_stored(cls, description: Mapping[str, Any], tensor: Callable[[str], npt.NDArray]) -> Self:
        """The inverse of `stored`; the core's codes are unpacked at their first use."""
        rows, columns = description["shape"]
        terms, block, offsets, ordered = (description.get(key) for key in _AROUND)
        terms = 1 if terms is None else count("terms", terms)
        inner = _core_description(description)
        core = described(inner).weight.from_stored({**inner, "shape": (rows, columns * terms)}, tensor)
        if offsets not in (None, "scaled", "added"):
            raise ValueError(f"offsets {offsets!r}, must be 'scaled' or 'added'")
        if ordered not in (None, True):
            raise ValueError(f"ordered {ordered!r}, must be true")
        return cls(
            core,
            signs=None if block is None else _unpack_signs(tensor("signs"), columns),
            block=block,
            offsets=tensor("offsets") if offsets else None,
            scaled=offsets == "scaled" if offsets else None,
            terms=terms,
            order=_stored_order(tensor("order")) if ordered else None,
        )

    @classmethod
    def tensors_of(cls, description: Mapping[str, Any]) -> tuple[str, ...]:
        """The core's, and what is around it."""
        core = _core_description(description)
        keys = {"signs": "block", "offsets": "offsets", "order": "ordered"}
        around = tuple(name for name, key in keys.items() if description.get(key))
        return described(core).weight.tensors_of(core) + around

    def stored(self) -> Stored:
        """The core's, signs as bits, offsets, order; `block`, `offsets` and `ordered` only where there are such, the
        whole's shape.

        A codebook core's description goes on with them, any other's is inside.
        """
        host, spec = self.to("cpu"), self.spec
        core = host.core.stored()
        tensors = core.tensors | host._around
        if host.signs is not None:
            tensors["signs"] = bits.pack(host.signs[None] < 0, 1)[0]
        around = {"block": spec.block, "offsets": spec.offsets, "ordered": spec.ordered}
        description = {"shape": list(spec.shape), "terms": spec.terms} | {k: v for k, v in around.items() if v}
        if self.core.format_name == "codebook":
            return Stored(tensors, core.description | description, version=4 if spec.ordered else 2)
        description = {"format": self.format_name, "core": core.description} | description
        return Stored(tensors, description, version=4 if spec.ordered else 3)

    @property
    def spec(self) -> TransformedSpec:
        """Shape, configuration and what is around the core."""
        return self._spec

    @cached_property
    def device(self) -> Device:
        """Where the arrays are: `cpu` or `cuda:<number>`."""
        return self.core.device

    @property
    def arrays(self) -> dict[str, Any]:
        """The core's, and signs, offsets and order where there are such."""
        return self.core.arrays | self._around

    @property
    def _around(self) -> dict[str, Any]:
        return super().arrays

    @property
    def options(self) -> dict[str, Any]:
        """What is said of signs, offsets and terms; the core has its own."""
        spec = self.spec
        scaled = spec.offsets == "scaled" if spec.offsets else None
        return {"block": spec.block or None, "scaled": scaled, "terms": spec.terms}

    @property
    def right(self) -> Rotation | None:
        """Of blocks, times signs, of columns in their order."""
        if self.signs is not None:
            return Rotation(self.signs, self.spec.block, self.order)
        return None if self.order is None else Rotation(np.ones(self.shape[1], np.int8), 1, self.order)

    @property
    def folded(self) -> TransformedWeight:
        """The same with the terms inside, for kernels: as a core [M, K] of terms alone."""
        if self.spec.terms == 1:
            return self
        weight = self._around_core(self.core, self.signs, self.offsets, self.order)
        weight.core, weight._spec = TransformedWeight(self.core, terms=self.spec.terms), self.spec.folded
        return weight

    def addends(self, dtype: npt.DTypeLike, rows: slice = slice(None)) -> Any:
        """What is added to the weights of each group, [rows, K/g] in float32 or float64, where the arrays are."""
        with beside(self.offsets):
            addends = self.offsets[rows].astype(dtype)
            if self.spec.offsets == "added":
                return addends
            scales: Any = getattr(self.core, "scales", None)  # of a core that has some
            return addends * scales[rows].astype(dtype)

    def core_blocks(self, dtype: np.dtype) -> Iterator[tuple[int, npt.NDArray]]:
        """The core's terms added up, and offsets."""
        spec = self.spec
        for start, block in self.core.dense_blocks(dtype):
            rows = block.reshape(len(block), spec.terms, spec.in_features).sum(1) if spec.terms > 1 else block
            if self.offsets is not None:
                addends = self.addends(rows.dtype, slice(start, start + len(rows)))
                rows = (rows.reshape(*addends.shape, -1) + addends[..., None]).reshape(rows.shape)
            yield start, rows

    def __getitem__(self, rows: slice) -> Self:
        """Rows r0:r1 as a weight of their own, on the same memory where kernels can load it from there."""
        core = self.core[rows]
        return self._around_core(core, self.signs, None if self.offsets is None else self.offsets[rows], self.order)

    def _with_arrays(self, arrays: dict[str, Any]) -> Self:
        core = self.core._with_arrays({name: arrays[name] for name in self.core.arrays})
        return self._around_core(core, *map(arrays.get, self.tensor_names))

    def twin(self) -> Self:
        twin = super().twin()
        twin.core = self.core.twin()
        return twin

    def _around_core(self, core: Weight, signs: Any, offsets: Any, order: Any) -> Self:
        """The same around another core, with arrays that fit."""
        weight = type(self).__new__(type(self))
        weight.core, weight._spec = core, replace(self.spec, out_features=core.shape[0], core=core.spec)
        weight.signs, weight.offsets, weight.order = (
            None if array is None else frozen(array) for array in (signs, offsets, order)
        )
        return weight

    def __eq__(self, other: object) -> bool:
        same = super().__eq__(other)
        return (
            isinstance(other, TransformedWeight) and self.core.options == other.core.options if same is True else same
        )

    __hash__ = None

    def __reduce__(self) -> Any:
        constructor, (cls, _) = super().__reduce__()
        return constructor, (cls, {"core": self.core} | self._around | self.options)

    @classmethod
    def join(cls, weights: Sequence[Self]) -> Self:
        """The cores' rows as one core's."""
        for what in ("block", "offsets", "terms"):
            same(what, [getattr(w.spec, what) for w in weights])
        if len({w.spec.ordered for w in weights}) > 1:
            raise ValueError("concat: some parts have their columns in another order and some do not, must be the same")
        core, first = concat([w.core for w in weights]), weights[0]
        for what in ("signs", "order"):
            mine, *others = (getattr(w, what) for w in weights)
            if mine is not None and any((to_host(mine) != to_host(other)).any() for other in others):
                raise ValueError(f"concat: {what} must be the same, for all parts multiply one x'")
        offsets = None
        if first.offsets is not None:
            with beside(first.offsets):
                offsets = array_module(first.offsets).concatenate([w.offsets for w in weights])
        return first._around_core(core, first.signs, offsets, first.order)


class TransformedFormat(Format[TransformedConfig, TransformedSpec, TransformedWeight]):
    """Any other format's weights with more around them."""

    config, weight = TransformedConfig, TransformedWeight
    syntax = f"q<planes>[v<vector length>][g<group size>], like q2g128; behind any of these {_EXTENSIONS}"
    examples = (
        "m2v4g32+rotated", "m1v4g8+rotated16+offsets", "m1v4b4g16+terms3", "m2v8g-1+rotated4+added+terms2",
        "m1v1b1g1+added", "m1v8g-1+offsets", "e8p+rotated", "e8p4+rotated16+added", "m1v4g16+ordered+offsets",
        "m2v4b5g16+ordered+rotated16+terms2", "q2g16", "q3v4g8+rotated16+added", "q2g32+ordered",
    )  # fmt: skip

    def parse(self, text: str) -> TransformedConfig | None:
        planes, of_one = _planes(text)
        match = _PATTERN.fullmatch(of_one)
        if match is None or ("+" not in text and planes == 1):
            return None
        if not match["core"]:
            raise ValueError(f"configuration {text!r}: there is nothing for it to stand around")
        unknown = match["core"] == of_one and "+" in text
        core = parse(of_one.partition("+")[0] if unknown else match["core"])
        if unknown or isinstance(core, TransformedConfig):
            raise ValueError(f"configuration {text!r}: behind {text.partition('+')[0]} may come {_EXTENSIONS}")
        if match["terms"] and int(match["terms"]) < 2:
            raise ValueError(f"configuration {text!r}: terms must be at least 2, for one is the core alone")
        if match["terms"] and planes > 1:
            raise ValueError(f"configuration {text!r}: its {planes} planes are its terms, and there are no others")
        if match["block"] and not int(match["block"]):
            raise ValueError(f"configuration {text!r}: the block of a rotation must be at least 1")
        block = 0 if match["block"] is None else int(match["block"] or USUAL)
        offsets = {None: "", "offsets": "scaled", "added": "added"}[match["offsets"]]
        return TransformedConfig(core, block, offsets, int(match["terms"] or planes), match["ordered"] is not None)

    def spec(self, shape: tuple[int, int], config: TransformedConfig) -> TransformedSpec:
        rows, columns = shape
        spec_of(shape, config.core)  # an error names the whole's columns
        core = spec_of((rows, config.terms * columns), _of_terms(config, columns))
        block = default_block(columns) if config.block == USUAL else config.block
        return transformed_spec(core, block, config.offsets, config.terms, config.ordered)

    def fitted(self, config: TransformedConfig, in_features: int) -> TransformedConfig:
        return replace(config, core=fitted(config.core, in_features))

    def random(self, spec: TransformedSpec, seed: int) -> TransformedWeight:
        rng, (rows, columns) = np.random.default_rng(seed), spec.shape
        return TransformedWeight(
            format_of(spec.core).random(spec.core, seed),
            signs=rng.choice(np.array([-1, 1], np.int8), columns) if spec.block else None,
            block=spec.block or None,
            offsets=rng.standard_normal((rows, spec.groups)).astype(np.float16) if spec.offsets else None,
            scaled=spec.offsets == "scaled" if spec.offsets else None,
            terms=spec.terms,
            order=rng.permutation(columns) if spec.ordered else None,
        )

    def core(self, spec: TransformedSpec) -> Spec:
        return spec.core

    def describes(self, description: Mapping[str, Any]) -> bool:
        around = any(description.get(key) is not None for key in _AROUND)
        return super().describes(description) or ("format" not in description and around)


def _planes(text: str) -> tuple[int, str]:
    """How many planes of signs a text is of, and the text with one of them; 1 and the text of any other."""
    match = _PLANES.fullmatch(text)
    if match is None:
        return 1, text
    if not int(match[1]):
        raise ValueError(f"configuration {text!r}: there must be at least 1 plane of signs")
    return int(match[1]), f"q1{match[2]}"


def _of_terms(config: TransformedConfig, columns: int) -> Any:
    """The core's configuration for the columns of all terms: a scale of a whole row becomes one of a term's."""
    core = config.core
    several = config.terms > 1 and isinstance(core, CodebookConfig)
    return replace(core, g=core.group_size(columns)) if several else core


def _without(description: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in description.items() if key not in keys}


def _check_columns(name: str, values: Any, in_features: int, kinds: str, numbers: str) -> None:
    """ValueError unless there is one for each column, of NumPy's kinds of dtypes."""
    if values.shape != (in_features,):
        raise ValueError(f"{name}: shape {values.shape}, must be ({in_features},), one a column of W")
    if values.dtype.kind not in kinds:
        raise ValueError(f"{name}: dtype {values.dtype}, must be of {numbers}")


def _as_signs(signs: Any, in_features: int) -> Any:
    """int8 [K] of +-1."""
    _check_columns("signs", signs, in_features, "if", "signed numbers")
    host = to_host(signs)
    bad = np.flatnonzero(abs(host) != 1)
    if len(bad):
        raise ValueError(f"signs: {host[bad[0]]} at {bad[0]}, must be 1 or -1")
    with beside(signs):
        return signs.astype(np.int8, copy=False)


def _as_order(order: Any, in_features: int) -> Any:
    """int32 [K], each of 0 .. K-1 once."""
    _check_columns("order", order, in_features, "iu", "integers")
    host = to_host(order)
    if not 0 <= int(host.min()) <= int(host.max()) < in_features:
        wrong = np.flatnonzero((host < 0) | (host >= in_features))[0]
        raise ValueError(f"order: {host[wrong]} at {wrong}, must be from 0 to {in_features - 1}")
    times = np.bincount(host.astype(np.int64))
    repeated = host[times[host] > 1]
    if len(repeated):
        often = times[repeated[0]]
        raise ValueError(f"order: {repeated[0]} is there {often} times, must be there once as every column")
    with beside(order):
        return order.astype(np.int32, copy=False)


def _core_description(description: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of the core; ValueError where that is none."""
    core = description["core"] if "format" in description else _without(description, *_AROUND)
    if not isinstance(core, dict) or core.get("format") == TransformedWeight.format_name:
        raise ValueError(f"core {core!r}: must be the description of a weight of another format")
    return core


def _unpack_signs(packed: npt.NDArray, columns: int) -> npt.NDArray:
    """int8 [K] of +-1 from a file's uint8 [ceil(K/8)]."""
    expected = (bits.row_bytes(columns, 1),)
    if packed.dtype != np.uint8 or packed.shape != expected:
        raise ValueError(f"signs: {packed.dtype} {packed.shape}, must be uint8 {expected}")
    return 1 - 2 * bits.unpack(packed[None], columns, 1)[0].astype(np.int8)


def _stored_order(order: npt.NDArray) -> npt.NDArray[np.int32]:
    """A file's, which has one dtype alone."""
    if order.dtype != np.int32:
        raise ValueError(f"order: dtype {order.dtype}, must be int32")
    return order


def _as_offsets(offsets: Any, spec: TransformedSpec) -> Any:
    expected = (spec.out_features, spec.groups)
    if offsets.shape != expected:
        raise ValueError(f"offsets: shape {offsets.shape}, must be {expected}, one a group")
    if offsets.dtype != np.float16:
        raise ValueError(f"offsets: dtype {offsets.dtype}, must be float16")
    check_finite("offsets", offsets)
    return offsets


register_format(TransformedFormat())
