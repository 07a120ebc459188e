"""Linear layers whose quantised weights are trained: codes stay, what stands around them changes.

Of codebook weights the codebooks (unless they are of signs), scales and offsets are trained, between rotations the
diagonals SU and SV; all of them as float32 masters, which are rounded to the weight's dtypes once, by `to_weight`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.format import format_of, parse
from codegemm.formats.incoherent import IncoherentWeight
from codegemm.formats.transformed import TransformedWeight
from codegemm.formats.weight import Weight

_MOST = float(np.finfo(np.float16).max)


def tunable(weight: Weight) -> Tunable:
    """Its trainable form; ValueError for a weight of a format that has none."""
    kind = _kind(type(weight), type(getattr(weight, "core", weight)))
    if kind is None:
        raise ValueError(f"{weight.spec.name}: weights of this format are not trained")
    return kind(weight)


def check_tunable(config: Any) -> None:
    """ValueError for a configuration whose weights have no trainable form."""
    config = parse(config)
    if _kind(format_of(config).weight, format_of(getattr(config, "core", config)).weight) is None:
        raise ValueError(f"config '{config}': weights of this format are not trained")


class Tunable(torch.nn.Module):  # type: ignore[misc]
    """A weight [out_features, in_features] as a function of its parameters."""

    def __init__(self, weight: Weight) -> None:
        super().__init__()
        self.weight, self.shape = weight, weight.shape

    @abstractmethod
    def dense(self) -> torch.Tensor:
        """W [out_features, in_features] in float32, with gradients to the parameters."""

    @abstractmethod
    def to_weight(self) -> Weight:
        """The weight of the parameters as they are, rounded to the dtypes that it had."""


class TunableLinear(torch.nn.Module):  # type: ignore[misc]
    """y = x @ W^T + bias of a Tunable; bias: as it is, not trained."""

    def __init__(self, weight: Weight, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.tunable, self.bias = tunable(weight), bias
        self.out_features, self.in_features = weight.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] in float32."""
        return torch.nn.functional.linear(x, self.tunable.dense(), self.bias)


class TunableCodebooks(Tunable):
    """Of a CodebookWeight."""

    weight: CodebookWeight

    def __init__(self, weight: CodebookWeight) -> None:
        super().__init__(weight)
        config, vectors = weight.config, weight.codes.shape[0] * weight.codes.shape[1]
        # Each part's centroids lie behind those of the parts before, each codebook's behind those before.
        starts = np.repeat(np.arange(len(weight.spec.part_rows)), weight.spec.part_rows) * config.centroids
        codes = weight.codes.astype(np.int32) + starts[:, None, None].astype(np.int32)
        self.register_buffer("codes", torch.from_numpy(codes.reshape(vectors, config.m).T.copy()), persistent=False)
        books = np.moveaxis(weight.part_codebooks, 1, 0).reshape(config.m, -1, config.v)
        self.codebooks = torch.nn.Parameter(_single(books), requires_grad=not config.signs)
        self.scales = torch.nn.Parameter(_single(weight.scales))

    def dense(self) -> torch.Tensor:
        sums = _Gathered.apply(self.codebooks, self.codes)
        return (sums.view(*self.scales.shape, -1) * self.scales[..., None]).reshape(self.shape)

    def to_weight(self) -> CodebookWeight:
        weight = self.weight
        books = np.moveaxis(_half(self.codebooks).reshape(weight.config.m, -1, *weight.codebooks.shape[-2:]), 0, 1)
        rows = weight.spec.part_rows if weight.codebooks.ndim == 4 else None
        return CodebookWeight(weight.codes, books.reshape(weight.codebooks.shape), _half(self.scales), rows)


class TunableSides(Tunable):
    """Of an IncoherentWeight: what is between the diagonals is a matrix that does not change."""

    weight: IncoherentWeight

    def __init__(self, weight: IncoherentWeight) -> None:
        super().__init__(weight)
        ones = _with(weight, SU=np.ones_like(weight.SU), SV=np.ones_like(weight.SV))
        self.register_buffer("core", _single(ones.dequantize(np.float32)), persistent=False)
        self.SU, self.SV = (torch.nn.Parameter(_single(each)) for each in (weight.SU, weight.SV))

    def dense(self) -> torch.Tensor:
        return self.SV[:, None] * self.core * self.SU

    def to_weight(self) -> Weight:
        su, sv = (_rounded(own, before) for own, before in ((self.SU, self.weight.SU), (self.SV, self.weight.SV)))
        return _with(self.weight, SU=su, SV=sv)


class TunableTransformed(Tunable):
    """Of a TransformedWeight: its core, and its offsets where it has some; signs and order stay."""

    weight: TransformedWeight

    def __init__(self, weight: TransformedWeight) -> None:
        super().__init__(weight)
        self.core = tunable(weight.core)
        self.offsets = None if weight.offsets is None else torch.nn.Parameter(_single(weight.offsets))
        self.register_buffer("signs", None if weight.signs is None else _single(weight.signs), persistent=False)
        places = None if weight.order is None else torch.from_numpy(np.argsort(weight.order))
        self.register_buffer("places", places, persistent=False)

    def dense(self) -> torch.Tensor:
        spec = self.weight.spec
        rows = self.core.dense().reshape(spec.out_features, spec.terms, spec.in_features).sum(1)
        if self.offsets is not None:
            scales = self.core.scales if spec.offsets == "scaled" else 1.0
            addends = self.offsets * scales
            rows = (rows.view(*addends.shape, -1) + addends[..., None]).reshape(self.shape)
        if self.signs is not None:
            rows = _hadamard(rows, spec.block) * self.signs
        return rows if self.places is None else rows[:, self.places]

    def to_weight(self) -> TransformedWeight:
        weight = self.weight
        offsets = None if self.offsets is None else _half(self.offsets)
        core = self.core.to_weight()
        return TransformedWeight(core, signs=weight.signs, offsets=offsets, order=weight.order, **weight.options)


class _Gathered(torch.autograd.Function):  # type: ignore[misc]
    """Sums of centroids: of codebooks [m, C, v] and codes [m, n] the vectors [n, v]."""

    @staticmethod
    def forward(context: Any, codebooks: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(codes)
        context.like = codebooks
        sums = codebooks[0].index_select(0, codes[0])
        for book, own in zip(codebooks[1:], codes[1:]):
            sums += book.index_select(0, own)
        return sums

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        if not context.needs_input_grad[0]:
            return None, None
        (codes,), like = context.saved_tensors, context.like
        if gradient.is_cuda:
            found = torch.zeros_like(like)
            for book, own in zip(found, codes):
                book.index_add_(0, own, gradient)
            return found, None
        # On a CPU, where torch takes its time with so many short rows, column by column.
        columns, (_, centroids, _) = gradient.T.numpy(), like.shape
        sums = [[np.bincount(own, column, centroids) for column in columns] for own in codes.numpy()]
        return torch.from_numpy(np.array(sums, np.float32)).transpose(1, 2), None


def _kind(weight: type, core: type) -> Any:
    """Of a weight's class, and of the class of what it is around."""
    if issubclass(weight, CodebookWeight):
        return TunableCodebooks
    if issubclass(weight, IncoherentWeight):
        return TunableSides
    if issubclass(weight, TransformedWeight) and issubclass(core, CodebookWeight):
        return TunableTransformed
    return None


def _hadamard(rows: torch.Tensor, block: int) -> torch.Tensor:
    """Every `block` numbers of the rows times a Hadamard matrix / sqrt(block)."""
    x, half = rows.reshape(-1, block), 1
    while half < block:
        pairs = x.view(len(x), -1, 2, half)
        left, right = pairs[:, :, 0], pairs[:, :, 1]
        x, half = torch.stack((left + right, left - right), 2).view(len(x), block), 2 * half
    return (x / block**0.5).reshape(rows.shape)


def _single(array: npt.NDArray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def _rounded(parameter: torch.Tensor, before: npt.NDArray) -> npt.NDArray:
    """In the dtype that it had, as far as that holds it."""
    most = np.finfo(before.dtype).max
    rounded: npt.NDArray = np.clip(parameter.detach().cpu().numpy(), -most, most).astype(before.dtype)
    return rounded


def _half(parameter: torch.Tensor) -> npt.NDArray[np.float16]:
    return np.clip(parameter.detach().cpu().numpy(), -_MOST, _MOST).astype(np.float16)


def _with(weight: Weight, **arrays: npt.NDArray) -> Weight:
    """A weight of the same kind with other arrays."""
    return type(weight)(**{**weight.arrays, **weight.options, **arrays})
