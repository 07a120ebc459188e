"""Weights that are sums of planes of signs, as kernels for binary codes take them: one such core, or several terms."""

from __future__ import annotations

from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.formats.transformed import TransformedSpec, TransformedWeight
from codegemm.formats.weight import Spec, Weight


def planes_of(spec: Spec) -> tuple[int, CodebookSpec]:
    """How many planes a weight [M, K] has, and the spec of its core [M, planes * K] of codebook weights."""
    if isinstance(spec, TransformedSpec):
        return spec.terms, spec.core  # type: ignore[return-value]  # what folds gets terms of a codebook weight alone
    assert isinstance(spec, CodebookSpec)
    return 1, spec


def core_of(weight: Weight) -> CodebookWeight:
    """The core of such a weight: codes [M, planes * K/v, 1] and scales [M, planes * K/g], plane after plane."""
    core = weight.core if isinstance(weight, TransformedWeight) else weight
    assert isinstance(core, CodebookWeight)
    return core


def unfit(spec: Spec) -> str | None:
    """Why a weight is none of binary codes, or None."""
    config = planes_of(spec)[1].config
    return None if config.signs else f"{config}: its codebook is not that of all signs, +1 and -1, like q2g128's"
