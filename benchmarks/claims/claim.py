"""A passage of a document with numbers, and what these come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from string import Formatter
from typing import Any

from benchmarks.claims.numbers import Span


@dataclass(frozen=True)
class Computed:
    """One whose numbers are computed: from the files that measuring left, or from what the package says of itself.

    document: its path. passage: as it stands there, in one line and with targets of links left out, but for a field
    like {:.1f} in place of each number. values: for the fields.
    """

    document: str
    passage: str
    values: Callable[[], Iterable[Any]]

    def told(self) -> tuple[str, list[Span]]:
        """The passage with its numbers, and where these are in it."""
        values, text, spans = iter(self.values()), "", []
        for literal, field, form, _ in Formatter().parse(self.passage):
            text += literal
            if field is not None:
                number = format(next(values), form or "")
                spans.append((len(text), len(text) + len(number)))
                text += number
        return text, spans


@dataclass(frozen=True)
class Fixed:
    """One whose numbers nobody measured. reason: what they follow from."""

    document: str
    passage: str
    reason: str

    def told(self) -> tuple[str, list[Span]]:
        """The passage, all of which may be numbers."""
        return self.passage, [(0, len(self.passage))]


Claim = Computed | Fixed


def within(text: str, claims: Iterable[Claim]) -> set[Span]:
    """Where a text has numbers that a claim accounts for."""
    found = set()
    for claim in claims:
        passage, spans = claim.told()
        place = text.find(passage)
        while place >= 0:
            found |= {(place + begin, place + end) for begin, end in spans}
            place = text.find(passage, place + 1)
    return found
