"""HTML as plain text: paragraphs with an empty line between them, code as it is laid out."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from html.parser import HTMLParser

_BLOCKS = frozenset({
    "address", "article", "blockquote", "body", "center", "dd", "div", "dl", "dt", "figure", "figcaption", "footer",
    "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section",
    "table", "tr", "ul",
})  # fmt: skip
_LINES = frozenset({"tr", "li", "dt", "dd", "br"})  # one below the other, without an empty line
_UNSEEN = frozenset({"head", "script", "style"})
_CELLS = frozenset({"td", "th"})
_HEADINGS = frozenset({"h1", "h2", "h3", "h4"})
_HEAD = "\f"


def text_of(html: str, without: Collection[str] = ()) -> str:
    """What a page says. Tags go, entities become characters, what stands in `pre` keeps its lines.

    without: classes of elements that are left out with all that is in them, like navigation.
    """
    return "\n\n".join(sections_of(html, without))


def sections_of(html: str, without: Collection[str] = ()) -> list[str]:
    """The same in parts that begin with the headings of the page, and what is before the first."""
    reader = _Reader(frozenset(without))
    reader.feed(html)
    reader.close()
    reader.end_block()
    text = re.sub(r"[ \t]+\n", "\n", "".join(reader.parts))
    sections = (re.sub(r"\n{3,}", "\n\n", part).strip("\n") for part in text.split(_HEAD))
    return [section for section in sections if section]


class _Reader(HTMLParser):
    """Collects lines. skipped: the name of the element that is left out, and how many of that name are open."""

    def __init__(self, without: frozenset[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.without = without
        self.line: list[str] = []
        self.verbatim = 0
        self.skipped = ("", 0)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        name, depth = self.skipped
        if depth:
            self.skipped = (name, depth + (tag == name))
            return
        classes = (dict(attrs).get("class") or "").split()
        if tag in _UNSEEN or not self.without.isdisjoint(classes):
            self.end_block()
            self.skipped = (tag, 1)
            return
        self._break(tag)
        self.verbatim += tag == "pre"
        if tag in _HEADINGS:
            self.parts.append(_HEAD)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if not self.skipped[1]:
            self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        name, depth = self.skipped
        if depth:
            self.skipped = (name, depth - (tag == name))
            return
        if tag in _CELLS:
            self.line.append(" \t")  # what a line of a table has side by side
        self._break(tag)
        self.verbatim = max(self.verbatim - (tag == "pre"), 0)

    def handle_data(self, data: str) -> None:
        if not self.skipped[1]:
            self.line.append(data.replace(_HEAD, "\n"))

    def end_block(self, ends: str = "\n\n") -> None:
        """Write what was collected, as one line unless it is code."""
        text, self.line = "".join(self.line), []
        if self.verbatim:
            text = text.strip("\n")
        else:
            text = "  ".join(filter(None, (re.sub(r"\s+", " ", cell).strip() for cell in text.split(" \t"))))
        if text.strip():
            self.parts.append(text + ends)
        elif ends == "\n\n" and self.parts:
            self.parts.append("\n")

    def _break(self, tag: str) -> None:
        if tag == "br" and self.verbatim:
            self.line.append("\n")
        elif tag in _LINES:
            self.end_block("\n")
        elif tag in _BLOCKS:
            self.end_block()
