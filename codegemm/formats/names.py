"""A weight's configuration as text, like `m1v4g128` or `e8p`, to and from its spec."""

from __future__ import annotations

from dataclasses import replace

from codegemm.config import CodebookConfig
from codegemm.formats import e8p
from codegemm.formats.codebook import CodebookSpec
from codegemm.formats.e8p import E8PSpec
from codegemm.formats.weight import Spec

E8P = "e8p"
_SIGNS = (16, 16)  # bits of an entry of SU and SV


def name_of(spec: Spec) -> str:
    """`m1v4g128` of codebooks, `e8p` of QuIP#'s 2-bit lattice (`e8p3`, `e8p4` of its 3 and 4 bits)."""
    if isinstance(spec, CodebookSpec):
        return str(spec.config)
    if isinstance(spec, E8PSpec):
        return E8P if spec.bits == 2 else f"{E8P}{spec.bits}"
    return type(spec).__name__


def spec_of(shape: tuple[int, int], config: str | CodebookConfig) -> Spec:
    """The spec of a weight [out_features, in_features] in one part; ValueError where the shape can't be stored so."""
    if config == E8P:
        e8p.check_shape(*shape)
        return E8PSpec(*shape, 2, _SIGNS)
    parsed = config if isinstance(config, CodebookConfig) else CodebookConfig.parse(config)
    parsed.check_shape(*shape)
    if parsed.g == shape[1]:  # a weight can't tell the one scale of a row from the other
        parsed = replace(parsed, g=-1)
    return CodebookSpec(*shape, parsed, shape[:1])
