"""A weight's configuration as text, like `m1v4g128`, `m2v8g128+rotated` or `e8p`, to and from its spec."""

from __future__ import annotations

import re
from dataclasses import replace

from codegemm.config import CodebookConfig
from codegemm.formats import e8p
from codegemm.formats.codebook import CodebookSpec
from codegemm.formats.e8p import E8PSpec
from codegemm.formats.extended import ExtendedSpec, extended_spec
from codegemm.formats.hadamard import default_block
from codegemm.formats.weight import Spec

E8P = "e8p"
_SIGNS = (16, 16)  # bits of an entry of SU and SV
_EXTENSIONS = re.compile(r"(\+rotated(?P<block>\d*))?(\+(?P<offsets>offsets|added))?(\+terms(?P<terms>\d+))?")


def name_of(spec: Spec) -> str:
    """`m1v4g128` of codebooks, `e8p` of QuIP#'s 2-bit lattice (`e8p3`, `e8p4` of its 3 and 4 bits).

    Behind a codebook weight's is what it has beyond that: `+rotated` (`+rotated64` with a block that is not the default
    one), `+offsets` (of groups, times their scale) or `+added` (as they are), `+terms3`.
    """
    if isinstance(spec, ExtendedSpec):
        return f"{spec.core.config}{spec.extensions}"
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
    if isinstance(config, str) and "+" in config:
        return _extended(shape, config)
    parsed = config if isinstance(config, CodebookConfig) else CodebookConfig.parse(config)
    parsed.check_shape(*shape)
    if parsed.g == shape[1]:  # a weight can't tell the one scale of a row from the other
        parsed = replace(parsed, g=-1)
    return CodebookSpec(*shape, parsed, shape[:1])


def _extended(shape: tuple[int, int], config: str) -> ExtendedSpec:
    plain, plus, rest = config.partition("+")
    match = _EXTENSIONS.fullmatch(plus + rest)
    if match is None:
        raise ValueError(
            f"configuration {config!r}: behind {plain} may come +rotated[<block>], +offsets or +added, +terms<number>"
        )
    rows, columns = shape
    parsed, terms = CodebookConfig.parse(plain), int(match["terms"] or 1)
    parsed.check_shape(rows, columns)
    if terms > 1:
        parsed = replace(parsed, g=parsed.group_size(columns))
    core = spec_of((rows, terms * columns), parsed)
    assert isinstance(core, CodebookSpec)
    block = 0 if match["block"] is None else int(match["block"] or default_block(columns))
    offsets = {None: "", "offsets": "scaled", "added": "added"}[match["offsets"]]
    return extended_spec(core, block, offsets, terms)
