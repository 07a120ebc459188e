"""The documents of each source: topics, entries, sections of pages and chapters, by names that no two of them share."""

from __future__ import annotations

import gzip
import importlib
import re
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

from benchmarks.models.debian import SourceError
from benchmarks.models.plaintext import sections_of

Documents = dict[str, str]

# Elements with nothing but links to other pages, in what DocBook, publican and Texinfo write.
NAVIGATION = frozenset({"navheader", "navfooter", "toc", "docnav", "header", "contents", "shortcontents", "indexterm"})
_BANNERS = frozenset({"copiable-anchor", "summary-letter", "index-cp", "index-vr", "index-fn"})

_ENTRY = re.compile(r"^   :(.+?):(?= |$)", re.MULTILINE)
_LETTER = re.compile(r"^  \S\n\n   \S", re.MULTILINE)  # above the list of a letter's entries
_PART = re.compile(r"^((?:Chapter \d+|Appendix [A-Z])\. .+)$", re.MULTILINE)
_CONTENTS = re.compile(r"\n   Table of Contents\n(?:\n+   \S.*(?=\n\n))*")  # one title after the other
_CHAPTER = re.compile(r"^chapter \w+\.?$", re.MULTILINE | re.IGNORECASE)
_STRINGS, _STRING, _KIND = 16, 9, 0xFF  # of R's types, and the bits of a word that say which


def topics() -> Documents:
    """Those of Python's `help`, of the Python that runs this."""
    found: Documents = importlib.import_module("pydoc_data.topics").topics
    return {name: found[name].strip() for name in sorted(found)}


def jargon(text: str) -> tuple[Documents, Documents]:
    """The chapters and the entries of the Jargon File; tables of contents and the lists of a letter's entries go."""
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    heads = ("\nChapter 1. ", "\nGlossary\n", "  Part III. ", "\nAppendix A. ")
    begin, lexicon, end, appendices = (text.find(head) for head in heads)
    if not 0 <= begin < lexicon < end < appendices:
        raise SourceError(f"Jargon File: must have {', '.join(map(repr, heads))} in this order")
    entries: Documents = {}
    for name, entry in _sections(_ENTRY, text[lexicon:end]):
        told = _flowing(_LETTER.split(entry)[0])
        entries[name] = f"{entries[name]}\n\n{told}" if name in entries else told
    chapters = _sections(_PART, text[begin:lexicon] + text[appendices:])
    return {name: _flowing(_CONTENTS.sub("\n", chapter)) for name, chapter in chapters}, entries


def _sections(heads: re.Pattern[str], text: str) -> Iterator[tuple[str, str]]:
    """What begins with each head, by the first group of it."""
    found = list(heads.finditer(text))
    for here, after in zip(found, [*found[1:], None]):
        yield here[here.re.groups and 1], text[here.start() : after.start() if after else None]


def _flowing(text: str) -> str:
    """Paragraphs that were broken into lines at the margin of three spaces, each in one line; what is indented
    further stays as it is."""
    return "\n\n".join(
        " ".join(map(str.strip, lines)) if all(re.match(r" {0,3}\S", line) for line in lines) else "\n".join(lines)
        for lines in (block.rstrip().split("\n") for block in re.split(r"\n\s*\n", text.strip("\n")))
        if any(lines)
    )


def pages(folder: Path, pattern: str, without: Collection[str] = NAVIGATION | _BANNERS) -> Documents:
    """The sections of a folder's HTML pages, by file name and number. SourceError where no page fits the pattern of
    names (`*.html`)."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise SourceError(f"{folder}: no {pattern} in it")
    return {
        f"{path.name}, section {number}": section
        for path in found
        for number, section in enumerate(sections_of(path.read_text("utf-8", "replace"), without), 1)
    }


def novels(path: Path) -> Documents:
    """The chapters of novels in a file of an R package's data (.rdb), numbered through each of them."""
    made: Documents = {}
    for lines in r_strings(path.read_bytes()):
        title = lines[0].strip().title()
        text = "\n".join(line.rstrip() for line in lines)
        for number, (_, chapter) in enumerate(_sections(_CHAPTER, text), 1):
            made[f"{title}, chapter {number}"] = _flowing(chapter)
    return made


def unpack_gzip(path: Path) -> str:
    """The text of a compressed file."""
    return gzip.decompress(path.read_bytes()).decode("utf-8")


def r_strings(data: bytes) -> Iterator[list[str]]:
    """The vectors of text in R's database, one after the other; SourceError for what is nothing of that kind.

    Each is four bytes of a length and a zlib stream of R's serialisation, format 3 in XDR's order of bytes.
    """
    while data:
        stream = zlib.decompressobj()
        try:
            yield _strings(stream.decompress(data[4:]))
        except (zlib.error, struct.error, UnicodeDecodeError) as error:
            raise SourceError(f"R's data: {error}; must be vectors of text") from None
        data = stream.unused_data


def _strings(serialised: bytes) -> list[str]:
    head, form, _, _, length = struct.unpack_from(">2s4i", serialised)
    at = struct.calcsize(">2s4i") + length
    kind, count = struct.unpack_from(">Ii", serialised, at)
    if head != b"X\n" or form != 3 or kind & _KIND != _STRINGS:
        raise SourceError(f"R's data: {head!r}, format {form}, type {kind & _KIND}; must be a vector of text, format 3")
    at, found = at + 8, []
    for _ in range(count):
        kind, size = struct.unpack_from(">Ii", serialised, at)
        if kind & _KIND != _STRING:
            raise SourceError(f"R's data: type {kind & _KIND} in a vector of text")
        at += 8
        found.append(serialised[at : at + max(size, 0)].decode("utf-8"))  # a missing one has -1 bytes
        at += max(size, 0)
    return found
