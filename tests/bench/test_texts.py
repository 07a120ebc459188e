"""The texts that whole models are calibrated by and evaluated on, of made-up sources: nothing is downloaded."""

import gzip
import json
import struct
import sys
import zlib

import pytest
from support import ROOT

from benchmarks.models import debian, documents, repeats, texts
from benchmarks.models.debian import Package, SourceError
from benchmarks.models.plaintext import sections_of, text_of
from benchmarks.models.texts import Source

PAGE = """<?xml version="1.0"?><!DOCTYPE html><html><head><title>Unseen</title><style>p {}</style></head><body>
<div class="nav top"><div>Prev</div><a>Next</a></div>
<h2>First &amp; last</h2><p>One <i>two</i>
   three&nbsp;&mdash; <code>f(x)</code>.<br/>Below.<ul><li>a<li>b</ul>
<pre class="x">if a &lt; b:

    <b>go</b>(  1)
</pre><table><tr><td>left</td><td> <p>right</p></td></tr><tr><th>l</th><td>r</td></tr></table>
<script>if (a < b) </script>
<h3>Second</h3>End</body></html>"""


def test_pages_become_text():
    first = "First & last\n\nOne two three — f(x).\nBelow.\n\na\nb\n\nif a < b:\n\n    go(  1)\n\nleft"
    assert sections_of(PAGE, {"nav"}) == [f"{first}\n\nright\n\nl  r", "Second\n\nEnd"]
    assert text_of(PAGE).startswith("Prev\n\nNext\n\nFirst & last\n\nOne")
    assert text_of("") == ""
    assert text_of("<p>a</p>b\f<p></p><p>c") == "a\n\nb\n\nc"


JARGON = """\
                                The Jargon File
   1. Hacker Slang
Chapter\N{NO-BREAK SPACE}1.\N{NO-BREAK SPACE}Hacker Slang
   Table of Contents

   Slang

   Style

   It is
   spoken.

       foo :bar: x
         :baz:
Chapter 2. More
   Words.

Glossary

   A

   aa

   :aa: /ah/, n.

   Two
   lines. See {bb}.

     1. listed
        so

  B

   bb

   :bb:

   [from {aa}]

   :aa: v.

   To aa.

                             Part III. Appendices

   Table of Contents

   A. Folklore
Appendix A. Folklore

   Once.
"""


def test_the_jargon_file_is_taken_apart():
    chapters, entries = documents.jargon(JARGON)
    assert chapters == {
        "Chapter 1. Hacker Slang": "Chapter 1. Hacker Slang\n\nIt is spoken.\n\n       foo :bar: x\n         :baz:",
        "Chapter 2. More": "Chapter 2. More Words.",
        "Appendix A. Folklore": "Appendix A. Folklore\n\nOnce.",
    }
    assert entries == {
        "aa": ":aa: /ah/, n.\n\nTwo lines. See {bb}.\n\n     1. listed\n        so\n\n:aa: v.\n\nTo aa.",
        "bb": ":bb:\n\n[from {aa}]",
    }
    with pytest.raises(SourceError, match="Jargon File: must have"):
        documents.jargon(JARGON.replace("Glossary", "Lexicon"))


def r_data(*vectors, form=3, kind=16, inner=9):
    """As R keeps vectors of text."""
    made = b""
    for vector in vectors:
        body = b"X\n" + struct.pack(">4i", form, 0, 0, 5) + b"UTF-8" + struct.pack(">Ii", kind, len(vector))
        for text in vector:
            body += struct.pack(">Ii", 0x40000 | inner, -1 if text is None else len(text.encode()))
            body += (text or "").encode()
        made += struct.pack(">i", len(body)) + zlib.compress(body)
    return made


def test_vectors_of_text_of_r():
    vectors = [["é", None, ""], ["second"]]
    assert list(documents.r_strings(r_data(*vectors))) == [["é", "", ""], ["second"]]


@pytest.mark.parametrize(
    "data",
    [r_data(["a"], form=2), r_data(["a"], kind=13), r_data(["a"], inner=8), b"\0\0\0\1what", r_data(["a"])[:-9]],
)
def test_other_data_of_r_is_refused(data):
    with pytest.raises(SourceError, match="R's data: "):
        list(documents.r_strings(data))


def test_chapters_of_novels(tmp_path):
    (tmp_path / "x.rdb").write_bytes(
        r_data(
            ["TITLE", "by A", "CHAPTER I", "", "It is", "a truth.", "", '"Yes."', "Chapter 2", "End"],
            ["B", "CHAPTER 1"],
        )
    )
    assert documents.novels(tmp_path / "x.rdb") == {
        "Title, chapter 1": 'CHAPTER I\n\nIt is a truth.\n\n"Yes."',
        "Title, chapter 2": "Chapter 2 End",
        "B, chapter 1": "CHAPTER 1",
    }


def test_pages_of_a_folder(tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.html").write_text(PAGE)
    found = documents.pages(tmp_path, "*.html", {"nav"})
    assert list(found) == [f"{name}.html, section {number}" for name in "ab" for number in (1, 2)]
    with pytest.raises(SourceError, match=r"no ch\*\.html in it"):
        documents.pages(tmp_path, "ch*.html")


def words(*numbers):
    return " ".join(f"w{number}" for number in numbers)


def test_shared_runs_of_words():
    own = repeats.shingles(words(*range(15)))
    assert len(own) == 3
    assert repeats.shingles(words(*range(12))) == set()
    assert repeats.shingles(words(*range(13)).upper().replace(" ", ",\n")) <= own
    assert repeats.share(own, repeats.shingles(words(*range(1, 99)))) == pytest.approx(2 / 3)
    assert repeats.share(set(), own) == 0


def test_repeated_paragraphs_are_left_out():
    seen: set[int] = set()
    told = words(*range(20))
    first = repeats.unrepeated({"a": f"{told}\n\nshort", "b": f"new\n\nbefore {told.upper()}\n\nshort"}, seen)
    assert first == {"a": f"{told}\n\nshort", "b": "new\n\nshort"}
    assert repeats.unrepeated({"c": told, "d": "short"}, seen) == {"d": "short"}


def test_runs_over_the_ends_of_paragraphs_count():
    seen = repeats.shingles(words(*range(20)))
    made = repeats.unrepeated({"a": "\n\n".join(words(*range(at, at + 5)) for at in range(0, 20, 5))}, seen.copy())
    assert repeats.share(repeats.shingles(made["a"]), seen) == 0
    assert made["a"] == "\n\n".join([words(*range(5)), words(*range(5, 10)), words(*range(15, 20))])


def test_documents_are_split_whole():
    found = dict.fromkeys("abcdefghi", "text")
    calibrated, held_out = texts.split(found, 4)
    assert ("".join(calibrated), "".join(held_out)) == ("abcefgi", "dh")
    assert sorted(texts.shuffled(found)) == sorted(found)
    assert list(texts.shuffled(found)) == list(texts.shuffled(dict(reversed(found.items())))) != sorted(found)


def test_topics_are_on_the_sides_that_their_numbers_say():
    made = texts._topics(ROOT)
    names = sorted(documents.topics())
    assert list(made["calibration/python"]) == names[::2]
    assert list(made["held-out/technical"]) == names[1::2]


SENTENCE = words(*range(14))
PACKAGE = Package("a-doc", "1:2-3", "0" * 64)


def source(package=None):
    found = {"calibration/x": {"p": f"{SENTENCE}\n\nown"}, "held-out/y": {"q": SENTENCE, "r": "more"}}
    return Source(tuple(found), "A title", "a licence", package, lambda folder: found)


def test_texts_are_assembled(tmp_path):
    made, told = texts.assemble(tmp_path / "new", [source()], {})
    assert told == []
    assert (tmp_path / "new/calibration/x.txt").read_text() == "own\n"
    held_out = (tmp_path / "new/held-out/y.txt").read_text()
    assert sorted(held_out.split("\n\n\n")) != [held_out]
    assert SENTENCE in held_out
    kept = json.loads((tmp_path / "new/texts.json").read_text())
    assert kept["python"].startswith(f"{sys.version_info[0]}.")
    [y, x] = kept["texts"]
    assert (x["name"], x["characters"], x["documents"], x["repeated"]) == ("calibration/x", 4, 1, 2 / 3)
    assert (y["name"], y["licence"], y["sha256"]) == ("held-out/y", "a licence", debian.digest(held_out.encode()))
    again, told = texts.assemble(tmp_path / "new", [source()], {text.name: text.sha256 for text in made})
    assert (again, told) == (made, [])


def test_other_texts_than_expected(tmp_path, monkeypatch):
    """Those of a package are refused; of topics, which go with Python's version, it is told."""
    _, told = texts.assemble(tmp_path / "told", [source()], {"calibration/x": "1" * 64})
    own = debian.digest(b"own\n")
    assert len(told) == 1
    assert told[0].startswith(f"calibration/x: SHA-256 is {own}, must be {'1' * 64} as of Python {texts.TOPICS_OF}")
    monkeypatch.setattr(texts, "unpacked", lambda package, folder: folder)
    with pytest.raises(SourceError, match=f"calibration/x: SHA-256 is {own}, must be {'1' * 64}"):
        texts.assemble(tmp_path / "refused", [source(PACKAGE)], {"calibration/x": "1" * 64})
    assert not (tmp_path / "refused").exists()


def test_every_text_has_a_hash_and_every_side_its_texts():
    names = set(texts.ASSEMBLED)
    assert {name for name in names if name.startswith("held-out")} == {
        f"held-out/{name}" for name in ("technical", "jargon", "other")
    }
    assert sorted(name for each in texts.SOURCES for name in each.texts) == sorted(names)
    assert all(len(each.package.sha256) == 64 for each in texts.SOURCES if each.package)
    assert all(name.partition("/")[0] in (texts.CALIBRATION, texts.HELD_OUT) for name in names)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A folder that alone is searched for commands, and what writes one into it."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place))

    def write(name, script):
        (place / name).write_text(f"#!/bin/sh\n{script}\n")
        (place / name).chmod(0o755)

    return write


def test_a_package_is_fetched_once_and_unpacked(tmp_path, commands):
    commands("apt-get", "echo \"$@\" >&2; printf '%s' package > 'a-doc_1%3a2-3_all.deb'")
    commands("dpkg-deb", 'test "$1" = --extract && echo unpacked > "$3/file"')
    package = Package("a-doc", "1:2-3", debian.digest(b"package"))
    (tmp_path / "to").mkdir()
    debian.unpacked(package, tmp_path / "to", tmp_path)
    assert (tmp_path / "to/file").read_text() == "unpacked\n"
    commands("apt-get", "exit 1")
    assert debian.fetched(package, tmp_path) == tmp_path / "a-doc_1%3a2-3_all.deb"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-doc_1%3a2-3_all.deb", "bin", "to"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "apt-get: no such command; these texts are assembled on Debian"),
        ("echo 'W: slow' >&2; echo 'E: Could not resolve deb.debian.org' >&2; exit 100", "E: Could not resolve"),
        ("exit 7", "exit status 7"),
        (": > other.deb", r"apt-get left other\.deb, must be a-doc_1%3a2-3_all\.deb"),
        ("printf x > 'a-doc_1%3a2-3_all.deb'", f"SHA-256 is {debian.digest(b'x')}, must be {'0' * 64}"),
    ],
)
def test_a_package_that_cannot_be_had_is_named(script, said, tmp_path, commands):
    if script is not None:
        commands("apt-get", script)
    with pytest.raises(SourceError, match=said) as raised:
        debian.fetched(PACKAGE, tmp_path)
    assert "a-doc" in str(raised.value)


def test_the_command_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    def failing(folder):
        raise SourceError("a-doc 1: no network")

    monkeypatch.setattr(sys, "argv", ["texts", str(tmp_path)])
    monkeypatch.setattr(texts, "assemble", failing)
    assert texts.main() == 1
    assert capsys.readouterr().err == "texts: a-doc 1: no network\n"
    monkeypatch.setattr(texts, "assemble", lambda folder: (made, ["other topics"]))
    made = [texts.Text("held-out/y", "A title", "a licence", None, "0", 1234, 2, 0.25)]
    assert texts.main() == 0
    assert capsys.readouterr().out == (
        "held-out/y                  1,234 characters in 2 documents; 25.00% was on the other side, too\nother topics\n"
    )


def test_compressed_text(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress("é".encode()))
    assert documents.unpack_gzip(tmp_path / "x.gz") == "é"
