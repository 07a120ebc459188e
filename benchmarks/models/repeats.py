"""Passages that texts share: thirteen words in a row tell that one was taken from the other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set

LENGTH = 13  # words in a row
_WORD = re.compile(r"\w+")


def shingles(text: str) -> set[int]:
    """Hashes of all runs of LENGTH words in it, whatever their case and what stands between them. They are of this
    process alone."""
    words = [word.lower() for word in _WORD.findall(text)]
    return {hash(tuple(words[at : at + LENGTH])) for at in range(len(words) - LENGTH + 1)}


def share(own: Set[int], others: Set[int]) -> float:
    """The part of a text's shingles that are others', too, from 0 to 1; 0 for a text without any."""
    return len(own & others) / len(own) if own else 0.0


def unrepeated(documents: Mapping[str, str], seen: set[int]) -> dict[str, str]:
    """The documents without those paragraphs that share a shingle with what was seen, which is added to `seen`.

    A shingle that reaches over the end of a paragraph counts for the paragraph that it ends in. A document of which
    nothing is left is left out.
    """
    made = {}
    for name, text in documents.items():
        kept: list[str] = []
        tail: list[str] = []  # the last words before the paragraph
        for paragraph in re.split(r"\n{2,}", text):
            words = [*tail, *_WORD.findall(paragraph)]
            own = shingles(" ".join(words))
            if seen.isdisjoint(own):
                kept.append(paragraph)
                tail = words[-LENGTH + 1 :]
        if kept:
            made[name] = "\n\n".join(kept)
            seen |= shingles(made[name])
    return made
