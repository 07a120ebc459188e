"""Every number of a measurement in README.md and docs/ has a source: a table that a command writes, or a claim."""

import re

import pytest
from support import ROOT

from benchmarks.claims import gpu, kernels, pages, readme, sources
from benchmarks.claims.claim import Computed, Fixed, within
from benchmarks.claims.numbers import handwritten, measured
from benchmarks.tables.__main__ import PAGE

CLAIMS = [*readme.CLAIMS, *pages.CLAIMS, *gpu.CLAIMS, *kernels.CLAIMS]
DOCUMENTS = [str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]]
DOCUMENTS.remove(str(PAGE.relative_to(ROOT)))  # all of it is written by a command


def text_of(document):
    return handwritten((ROOT / document).read_text())


def unaccounted(text, claims):
    """Numbers of measurements that no claim accounts for, with what is around them."""
    spans = within(text, claims)
    for begin, end in measured(text):
        if not any(first <= begin and end <= last for first, last in spans):
            yield f"{text[begin:end]!r} in: ...{text[max(0, begin - 60) : end + 40]}..."


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.document}: {claim.passage[:50]}")
def test_what_is_claimed_is_what_was_measured(claim):
    passage, _ = claim.told()
    assert passage in text_of(claim.document), f"{claim.document} has no passage {passage!r}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_number_has_a_source(document):
    found = list(unaccounted(text_of(document), [claim for claim in CLAIMS if claim.document == document]))
    assert not found, f"{document}: add a claim to benchmarks/claims, or leave the number out:\n" + "\n".join(found)


def test_what_is_fixed_has_a_number_and_a_reason():
    for claim in CLAIMS:
        assert claim.document in DOCUMENTS
        if isinstance(claim, Fixed):
            assert claim.reason
            assert list(measured(claim.passage)), f"{claim.passage!r} needs no claim"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("It is 2.5 times as fast, 3 times as fast, four times, and 3x that.", ["2.5", "3", "four", "3"]),
        ("It takes 12 us, 3 s, 2 to 4 % more, 50 percent or ten minutes.", ["12", "3", "2", "4", "50", "ten"]),
        ("At 4,241 GB/s and 2 TB/s, of 140 GiB and 64 KiB; 30 tokens a second.", ["4,241", "2", "140", "64", "30"]),
        ("Errors of 2e-4, 1.1e-2 and 0.09; 2 bits per weight.", ["2e-4", "1.1e-2", "0.09", "2"]),
        ("A tenth, a tenth, two thirds and one eighth; three in four of them, two of six.",
         ["a tenth", "two thirds", "one eighth", "three in four", "two of six"]),
        ("8192 x 28672 times `quip`, 64 rows of x, m2v8g128, codes of 8 bits, AQLM 2x8, sm_90, one row, 9 layers.", []),
        ("[here](results.md#in-2.5-times), arXiv:2512.17970", []),
        ("<!-- a-b: written by `make tables` -->\n| 2.5 % |\n<!-- end of a-b -->\n", []),
        ("<!-- a: written by `make counters` -->\n| 2.5 % |\n<!-- end of a -->\nand 7 %", ["7"]),
    ],
)  # fmt: skip
def test_which_numbers_are_measured(text, numbers):
    text = handwritten(text)
    assert [text[begin:end] for begin, end in measured(text)] == numbers


def test_a_number_without_a_source_is_named():
    claims = [
        Computed("a.md", "takes {:.1f} us, {} of it", lambda: (1.25, "a third")),
        Fixed("a.md", "at most 64 KiB", "the kernel"),
    ]
    passage = "It takes 1.2 us, a third of it for at most 64 KiB."
    assert list(unaccounted(passage, claims)) == []
    assert [said[:8] for said in unaccounted(passage.replace("1.2", "1.3"), claims)] == ["'1.3' in", "'a third"]
    assert [said[:4] for said in unaccounted(f"{passage} Or 2 % more.", claims)] == ["'2' "]
    literal = [Computed("a.md", "takes 1.2 us, {} of it", lambda: ["a third"]), claims[1]]
    assert [said[:5] for said in unaccounted(passage, literal)] == [
        "'1.2'"
    ]  # what is not computed accounts for nothing


def test_claims_follow_their_files(monkeypatch):
    """Another measurement, another number."""
    [claim] = [each for each in readme.CLAIMS if "Speed, CPU" in each.passage]
    before = claim.told()[0]
    rows = sources.files.rows

    def faster(name):
        return [row | {"times_dense": row["times_dense"] and 10 * row["times_dense"]} for row in rows(name)]

    monkeypatch.setattr(sources.files, "rows", faster)
    numbers = [[float(each) for each in re.findall(r"\d+\.\d", text)] for text in (before, claim.told()[0])]
    assert numbers[1] == pytest.approx([10 * each for each in numbers[0]], rel=0.05)


def test_numbers_in_words():
    assert [sources.in_words(each) for each in (0.6, 3.9, 10)] == ["one", "four", "ten"]
    assert [sources.part(each) for each in (0.108, 0.133, 0.51, 0.655)] == [
        "a tenth",
        "one eighth",
        "half",
        "two thirds",
    ]
    with pytest.raises(ValueError, match=r"0\.580 is no simple fraction"):
        sources.part(0.58)
    assert [sources.power(each) for each in (2e-4, 1.434e-4, 0.0114)] == ["2e-4", "1.4e-4", "1.1e-2"]
