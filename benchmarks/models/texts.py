"""English texts to calibrate by and to evaluate on: `python -m benchmarks.models.texts [FOLDER]`, on Debian.

FOLDER/calibration/*.txt is the mix, a file a source; FOLDER/held-out/*.txt are `technical` and `jargon`, of sources
that the mix has other documents of, and `other`, of a kind that it has nothing of. FOLDER/texts.json says of what they
are made, by which licence, and what they had in common. Whole documents (topics, entries, chapters, sections) are on
one side or the other, in an order that has nothing to do with their subjects, so that a file's beginning is a sample of
it.

A paragraph that shares thirteen words in a row with one before it is left out, where held-out texts come before the
mix: nothing that a model is evaluated on is in what it was calibrated by.

Packages come from Debian's archive, of versions and hashes that are written here, as are the hashes of what is made of
them: anything else is refused. Topics are those of the Python that runs this and change with its version, which
texts.json names; where they are not those that the numbers in docs/ are of, that is told, and no error.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import documents, repeats
from benchmarks.models.debian import Package, SourceError, check, digest, unpacked
from benchmarks.models.documents import Documents
from codegemm.files import replace_file
from codegemm.reporting import counted, write_json

FOLDER = Path("texts")
CALIBRATION, HELD_OUT = "calibration", "held-out"


@dataclass(frozen=True)
class Source:
    """Where texts come from. texts: the names of those, like `calibration/handbook`. licence: in a line. read: makes
    the documents of each, of the folder in which the package is unpacked; an empty one where there is no package, but
    Python's own topics."""

    texts: tuple[str, ...]
    title: str
    licence: str
    package: Package | None
    read: Callable[[Path], Mapping[str, Documents]]


@dataclass(frozen=True)
class Text:
    """One file that is made. sha256: of its bytes. documents: that it has of its source. repeated: the part of its
    shingles that texts of the other side had before repeated paragraphs were left out."""

    name: str
    source: str
    licence: str
    package: Package | None
    sha256: str
    characters: int
    documents: int
    repeated: float


def _topics(folder: Path) -> dict[str, Documents]:
    calibrated, held_out = split(documents.topics(), 2)
    return {"calibration/python": calibrated, "held-out/technical": held_out}


def _jargon(folder: Path) -> dict[str, Documents]:
    path = folder / "usr/share/doc/jargon-text/jargon.txt.gz"
    chapters, entries = documents.jargon(documents.unpack_gzip(path))
    calibrated, held_out = split(entries, 4)
    return {"calibration/jargon": chapters | calibrated, "held-out/jargon": held_out}


def _novels(folder: Path) -> dict[str, Documents]:
    path = folder / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    return {"calibration/novels": split(documents.novels(path), 3)[1]}


def _essays(folder: Path) -> dict[str, Documents]:
    found = documents.pages(folder / "usr/share/doc/anarchism/html", "sec[A-J][0-9]*.html")
    return {"held-out/other": split(found, 8)[1]}


def _pages(name: str, folder: str, pattern: str = "*.html") -> Callable[[Path], dict[str, Documents]]:
    """What reads all pages of a folder of a package for one text."""
    return lambda root: {name: documents.pages(root / folder, pattern)}


SOURCES = (
    Source(
        ("calibration/python", "held-out/technical"), "topics of Python's help (pydoc_data)", "PSF-2.0", None, _topics
    ),
    Source(
        ("calibration/jargon", "held-out/jargon"),
        "the Jargon File 4.4.7",
        "public domain",
        Package("jargon-text", "4.4.7-4.1", "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb"),
        _jargon,
    ),
    Source(
        ("calibration/handbook",),
        "The Debian Administrator's Handbook",
        "GPL-2.0-or-later or CC-BY-SA-3.0",
        Package("debian-handbook", "11.20220922", "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa"),
        _pages("calibration/handbook", "usr/share/doc/debian-handbook/html/en-US"),
    ),
    Source(
        ("calibration/reference",),
        "Debian Reference",
        "GPL-2.0-or-later",
        Package("debian-reference-en", "2.100", "9f31d3a17df505de09689ca255512ea58c1fc47c59bb1b0c7bf1c23362e9743f"),
        _pages("calibration/reference", "usr/share/debian-reference", "ch*.en.html"),
    ),
    Source(
        ("calibration/statistics",),
        "the manuals of R 4.2.2",
        "free to copy and to modify under the same terms, which they state (R Core Team)",
        Package("r-doc-html", "4.2.2.20221110-2", "2c615dd386993a440b80fd4e9060318386e31fbe47f5be65f295f5fb34002c5c"),
        _pages("calibration/statistics", "usr/share/R/doc/manual", "R-*.html"),
    ),
    Source(
        ("calibration/hackers",),
        "Copyright Does Not Exist, by Linus Walleij",
        "public domain",
        Package("cfi-en", "3.0-10.2", "a080fc8f3b1a36c645b22f769fec4acc2f0cded42bcc5d5865c846845c897da2"),
        _pages("calibration/hackers", "usr/share/doc/cfi-en/html", "[cop]*.htm"),
    ),
    Source(
        ("calibration/novels",),
        "the novels of Jane Austen",
        "public domain, in an R package under MIT",
        Package("r-cran-janeaustenr", "1.0.0-1", "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"),
        _novels,
    ),
    Source(
        ("held-out/other",),
        "An Anarchist FAQ 15.3",
        "GPL-2.0-or-later",
        Package("anarchism", "15.3-3", "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948"),
        _essays,
    ),
)

# SHA-256 of the files; those of topics are of the Python that the numbers in docs/ are of.
ASSEMBLED = {
    "held-out/jargon": "5c51818312302bb6e1c0b934b64b8a55bb59084272dc4a6fa3a417fcb722dae6",
    "held-out/other": "56e135fa912ced63565fca2858c24112fdcc2e3c229fce8be6621dea05750487",
    "held-out/technical": "af1cb4aa363488a56aed0c8fab68a1f1eb104a4065144a812c790bb99fedd973",
    "calibration/hackers": "6a54f6d1030c40bc77267baaf43ac4daabf4c5a8b222b80b7f95918d7153ebdd",
    "calibration/handbook": "8f60b1e3661125a36fba08254bc5a92fbcb31fb7d6b087bb83d5687436d1112d",
    "calibration/jargon": "92919c6cfac5c137107530a610b4cfd4f84401a01a38120f6dd87929f094820e",
    "calibration/novels": "01c0c0d6276a9f35f6627b88362644bbd108af44f06e4e0d5295e2934ff3545a",
    "calibration/python": "2a017e4c70b4cf8f9aa05ac4bbac8e7c7f75a18118b864aa4007100c6e6e1c0d",
    "calibration/reference": "c0da2d9efdb31b0197eb325ed29d6563c206e6d93fe113f2e2e0f5f29b83051a",
    "calibration/statistics": "a30479d7af3a08859e1fe9d105f029b106dbb8149ec7a20180bd0c202c8b8b55",
}
TOPICS_OF = "3.11.7"


def main() -> int:
    """Assemble them, and say what they are."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.texts", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    asked = parser.parse_args()
    try:
        made, told = assemble(asked.folder)
    except SourceError as error:
        print(f"texts: {error}", file=sys.stderr)
        return 1
    for text in made:
        size = f"{text.characters:9,} characters in {counted(text.documents, 'document')}"
        print(f"{text.name:24}{size}; {text.repeated:.2%} was on the other side, too")
    for difference in told:
        print(difference)
    return 0


def split(found: Documents, every: int) -> tuple[Documents, Documents]:
    """All but every so-many-th document, and those: the last of each so many, in the order that they have."""
    chosen = {name for number, name in enumerate(found, 1) if number % every == 0}
    return {n: t for n, t in found.items() if n not in chosen}, {n: t for n, t in found.items() if n in chosen}


def shuffled(found: Documents) -> Documents:
    """In the order of the hashes of their names."""
    return {name: found[name] for name in sorted(found, key=lambda name: digest(name.encode()))}


def assemble(
    folder: Path, sources: Sequence[Source] = SOURCES, expected: Mapping[str, str] = ASSEMBLED
) -> tuple[list[Text], list[str]]:
    """Write all texts and texts.json into a folder, which is made if need be; and in what topics are other ones than
    expected. What is there of the files is replaced.

    expected: the SHA-256 of each text that is known. SourceError for a package that can't be had and, with nothing
    written, for a text of a package that has another hash.
    """
    found = _read(sources)
    order = sorted(found, key=lambda name: (not name.startswith(HELD_OUT), name))
    repeated, seen = _repeated(found), set[int]()
    made, contents, told = [], {}, []
    for name in order:
        source, read = found[name]
        kept = repeats.unrepeated(shuffled(read), seen)
        contents[name] = "\n\n\n".join(kept.values()) + "\n"
        sha256 = digest(contents[name].encode())
        sizes = (len(contents[name]), len(kept))
        made.append(Text(name, source.title, source.licence, source.package, sha256, *sizes, repeated[name]))
        try:
            check(name, sha256, expected.get(name, sha256))
        except SourceError as error:
            if source.package is not None:
                raise
            told.append(f"{error} as of Python {TOPICS_OF}; this is {platform.python_version()}")
    for name, content in contents.items():
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, [content.encode()])
    write_json({"python": platform.python_version(), "texts": made}, folder / "texts.json")
    return made, told


def _read(sources: Sequence[Source]) -> dict[str, tuple[Source, Documents]]:
    """The documents of each text."""
    found = {}
    for source in sources:
        with tempfile.TemporaryDirectory() as work:
            if source.package is not None:
                unpacked(source.package, Path(work))
            found |= {name: (source, own) for name, own in source.read(Path(work)).items()}
    return found


def _repeated(found: Mapping[str, tuple[Source, Documents]]) -> dict[str, float]:
    """The part of each text's shingles that texts of the other side have."""
    own = {name: set[int]().union(*map(repeats.shingles, read.values())) for name, (_, read) in found.items()}

    def others(side: str) -> set[int]:
        return set[int]().union(*(theirs for name, theirs in own.items() if not name.startswith(side)))

    against = {side: others(side) for side in (CALIBRATION, HELD_OUT)}
    return {name: repeats.share(theirs, against[name.partition("/")[0]]) for name, theirs in own.items()}


if __name__ == "__main__":
    sys.exit(main())
