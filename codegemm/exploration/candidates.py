"""The configurations worth a try under a budget of bits a weight: pure functions of the matrix's shape."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import chain, product, zip_longest
from typing import Any

from codegemm.formats.codebook_config import CodebookConfig
from codegemm.formats.format import parse, registered, spec_of
from codegemm.formats.transformed import TransformedConfig

MOST = 14  # configurations of a budget

_VECTORS, _CODEBOOKS, _GROUPS = (2, 4, 8, 16), (1, 2, 3, 4), (32, 128, -1)
_PLANES = (1, 2, 3, 4)
_BITS = (4, 6, 8)
_BITS_ALONE = (10, 12)  # of a single codebook: the joint search of several so large ones takes too long
# A budget of 2 is what the paper calls 2 bit: codes of 2 bits, to which scales of 128 weights add an eighth and the
# codebooks of a small matrix as much again. From below, half a bit leaves no gap between whole budgets that any group
# size could fill.
_BELOW, _ABOVE = 0.5, 0.25


def candidates(shape: tuple[int, int], bits: Sequence[float]) -> list[CodebookConfig]:
    """The configurations to try for a matrix [out_features, in_features], at most `MOST` for each budget in `bits`.

    They have from half a bit less than the budget to a quarter more a weight, everything counted. None comes twice;
    the list is empty where the shape can hold none.
    """
    return list(dict.fromkeys(chain.from_iterable(_within(shape, budget) for budget in bits)))


def others(shape: tuple[int, int], bits: Sequence[float]) -> list[Any]:
    """Planes of signs, and the examples of all other formats but for what stands around a core, that the shape can hold
    within a budget."""
    texts = [text for format in registered() for text in format.examples]
    configs = [config for config in map(parse, texts) if not isinstance(config, (CodebookConfig, TransformedConfig))]
    configs += [parse(f"q{planes}g{g}") for planes in _PLANES for g in _GROUPS[1:]]
    return [config for config in configs if any(_fits(shape, config, budget) for budget in bits)]


def _fits(shape: tuple[int, int], config: Any, budget: float) -> bool:
    try:
        spec = spec_of(shape, config)
    except ValueError:
        return False
    return budget - _BELOW <= spec.bits_per_weight <= budget + _ABOVE


def _within(shape: tuple[int, int], budget: float) -> list[CodebookConfig]:
    """Of every v and m in turns: first the most bits in codes, which lessen the error more than bits in scales do, and
    of several such the nearest to the budget. Those with the fewest lookups a weight begin; where codebooks and scales
    take more than half a bit of the budget, a family comes last."""
    families: dict[tuple[int, int], list[CodebookConfig]] = {}
    for config in _largest_codebooks(shape, budget):
        families.setdefault((config.m, config.v), []).append(config)
    ranked = [
        sorted(family, key=lambda config: (-config.b, abs(config.bits_per_weight(*shape) - budget)))
        for family in families.values()
    ]

    def order(family: list[CodebookConfig]) -> tuple[bool, Fraction, int]:
        lookups = Fraction(family[0].m, family[0].v)
        return family[0].b * lookups < budget - _BELOW, lookups, family[0].v

    ordered = sorted(ranked, key=order)
    turns = chain.from_iterable(zip_longest(*ordered))
    return [config for config in turns if config is not None][:MOST]


def _largest_codebooks(shape: tuple[int, int], budget: float) -> list[CodebookConfig]:
    """What the shape can hold within the budget; of those that differ in b alone the one that errs least."""
    largest: dict[tuple[int, int, int], CodebookConfig] = {}
    for v, m, g in product(_VECTORS, _CODEBOOKS, _GROUPS):
        if shape[1] % v or (g != -1 and (shape[1] % g or g >= shape[1])):  # a group of the whole row is g=-1
            continue
        for b in _BITS + (_BITS_ALONE if m == 1 else ()):
            config = CodebookConfig(v=v, m=m, b=b, g=g)
            if budget - _BELOW <= config.bits_per_weight(*shape) <= budget + _ABOVE:
                largest[v, m, g] = config
    return list(largest.values())
