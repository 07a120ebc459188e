"""Which numbers of a document are of something that was measured: those that its readers will take for results.

These are decimals, and numbers with a unit of speed, time, memory or proportion behind them, in digits or in words.
Counts, shapes and the like are not. What stands in tables that commands write is left out: tests compare it with what
the commands write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_GENERATED = re.compile(r"<!-- ([\w-]+): written by `make \w+` -->\n.*?<!-- end of \1 -->\n", re.DOTALL)
_NAMES = re.compile(r"\]\([^)]*\)|arXiv:[\d.]+")  # that have digits: targets of links, papers

_UNIT = (
    r"(?:%|(?:percent|times|us|ms|s|(?:micro|milli)?seconds?|minutes?|hours?|[KMGT]i?B(?:/s)?|[GT]FLOPS|W|"
    r"bits per weight|bits/weight|tokens?)\b)"
)
_DIGITS = r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
_WORD = r"(?:two|three|four|five|six|seven|eight|nine|ten|fifteen|twenty|thirty|forty|fifty)"
_PART = r"(?:third|quarter|fourth|fifth|sixth|eighth|tenth)s?"
_CLAIMS = re.compile(
    "|".join((
        rf"(?P<unit>(?<! x ){_DIGITS})(?=(?: to {_DIGITS})? ?{_UNIT}|x\b)",
        r"(?P<decimal>(?<![\w.])\d[\d,]*\.\d+(?:e-?\d+)?)",
        r"(?P<power>(?<![\w.])\d+e-?\d+)",
        rf"\b(?P<word>{_WORD})(?= {_UNIT})",
        rf"\b(?P<part>(?:an?|one|{_WORD}) {_PART})\b",
        rf"\b(?P<share>(?:one|{_WORD}) (?:of|in) {_WORD})\b",
    ))
)  # fmt: skip

Span = tuple[int, int]


def by_hand(document: str) -> str:
    """A document without what commands write."""
    return _GENERATED.sub("", document)


def handwritten(document: str) -> str:
    """The same in one line, and without targets of links."""
    return " ".join(_NAMES.sub("]", by_hand(document)).split())


def measured(text: str) -> Iterator[Span]:
    """Where these numbers are."""
    for match in _CLAIMS.finditer(text):
        yield match.span(match.lastgroup or 0)
