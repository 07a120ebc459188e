"""Whom the paper's tables compare: each a way to store weights and what multiplies by them here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A column of the paper's.

    config: of the weights; empty for a dense product. kernel: by name; empty for the one that `auto` takes, which is
    how this project multiplies by its own configurations.
    """

    config: str
    kernel: str = ""

    @property
    def ours(self) -> bool:
        """Whether the paper's own kernel is what it stands for."""
        return not self.kernel


DENSE = "dense"
OPPONENTS = {
    DENSE: Method("", "dense"),
    "LUT-GEMM q2g128": Method("q2g128", "lutgemm"),
    "QuIP# e8p": Method("e8p", "quip"),
    "QTIP 2 bit": Method("qtip", "qtip"),
    "AQLM 1x16": Method("m1v8b16g-1", "aqlm"),
    "AQLM 2x8": Method("m2v8g-1", "aqlm"),
}


def method(label: str) -> Method:
    """Of a column's label: an opponent, or a configuration of the paper's own."""
    return OPPONENTS.get(label) or Method(label)
