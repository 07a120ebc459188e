"""What a quantised SmolLM2 may lose: its perplexity in multiples of the dense model's, by the bits that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """Of models of at most `bits` bits a weight: on each text, at most that ratio of perplexities."""

    bits: float
    ratios: Mapping[str, float]


TARGETS = (
    Target(2.15, {"technical": 1.55, "jargon": 2.0}),
    Target(2.55, {"technical": 1.35, "jargon": 1.6}),
    Target(3.15, {"technical": 1.13, "jargon": 1.22}),
    Target(4.15, {"technical": 1.04, "jargon": 1.08}),
)


def is_for(target: Target, bits: float) -> bool:
    """Whether a model of so many bits is small enough, by two decimals, as tables show them."""
    return round(bits, 2) <= target.bits


def target_of(bits: float) -> Target | None:
    """That of the fewest bits which are enough; None for more than all have."""
    return next((target for target in TARGETS if is_for(target, bits)), None)


def met(bits: float, ratios: Mapping[str, float]) -> dict[str, bool]:
    """For each text that a model of so many bits has a target for, whether it is reached."""
    target = target_of(bits)
    return {} if target is None else {text: ratios[text] <= most for text, most in target.ratios.items()}
