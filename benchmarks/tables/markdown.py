"""Tables and documents in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def table(lines: Sequence[Sequence[str]], rule: str = " --- ") -> str:
    """Its heads first."""
    head, *rest = (f"| {' | '.join(line)} |\n" for line in lines)
    return "".join((head, f"|{'|'.join([rule] * len(lines[0]))}|\n", *rest))


def marks(name: str) -> tuple[str, str]:
    """The comments around a table in a document."""
    return f"<!-- {name}: written by `make tables` -->\n", f"<!-- end of {name} -->\n"


def renewed(document: str, texts: Mapping[str, str]) -> str:
    """A document with those of the tables replaced that it has."""
    for name, text in texts.items():
        begin, end = marks(name)
        if begin in document:
            before, rest = document.split(begin)
            document = before + begin + text + end + rest.split(end)[1]
    return document
