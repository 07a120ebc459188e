"""Questions of the topics that Python's interpreter explains: which sentence comes next.

Every sentence but the first of each paragraph in the odd topics (by their sorted names; the even ones are for
calibration), behind those before it, among three of other paragraphs of the same topic. They follow from the text
alone, and so are the same everywhere for a version of Python.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from pydoc_data.topics import topics
from typing import Any, NamedTuple

CHOICES = 4
_LEAST = 4  # words of what is asked for, and of what stands before it


class Question(NamedTuple):
    """The beginning of a paragraph, and sentences of which the one at `right` comes next, each behind a space."""

    topic: str
    beginning: str
    sentences: list[str]
    right: int


def dataset(**ignored: Any) -> dict[str, Any]:
    """As lm-eval asks for it."""
    from datasets import Dataset

    return {"test": Dataset.from_list([each._asdict() for each in questions(topics)])}


def questions(texts: Mapping[str, str]) -> list[Question]:
    """Of texts by topic."""
    found = []
    for topic in sorted(texts)[1::2]:
        rng, paragraphs = random.Random(topic), list(_paragraphs(texts[topic]))
        for own in paragraphs:
            others = sorted({each for other in paragraphs if other != own for each in _asked(other)} - set(own))
            for place, sentence in enumerate(own):
                beginning = " ".join(own[:place])
                if sentence in _asked(own) and _has_words(beginning) and len(others) >= CHOICES - 1:
                    choices = [sentence, *rng.sample(others, CHOICES - 1)]
                    rng.shuffle(choices)
                    told = [f" {each}" for each in choices]
                    found.append(Question(topic, beginning, told, choices.index(sentence)))
    return found


def _paragraphs(text: str) -> Iterator[list[str]]:
    """The sentences of each that is plain prose."""
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip("\n").split("\n")
        sentences = re.split(r"(?<=[.!?]) +(?=[A-Z])", " ".join(lines))
        if not any(re.match(r"[\s*.|+>=-]", line) for line in lines) and sentences[-1].endswith("."):
            yield sentences


def _asked(sentences: list[str]) -> list[str]:
    """Those that are asked for: not the first, which nothing stands before, and none of very few words."""
    return [each for each in sentences[1:] if _has_words(each)]


def _has_words(text: str) -> bool:
    """Enough of them to say something."""
    return len(text.split()) >= _LEAST
