"""What the documents say of themselves and of the package: links lead somewhere, README's examples run."""

import os
import re
import sys

import pytest
from click.testing import CliRunner
from support import ROOT

from benchmarks.claims.numbers import by_hand
from codegemm.cli import cli

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])
README = (ROOT / "README.md").read_text()


def anchors(document):
    """Of its headings, as hosts of repositories make them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = document.parent / path if path else document
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_are_as_short_as_those_of_code(document):
    """But for tables, and what a command writes."""
    text = by_hand(document.read_text())
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert text.startswith("<!-- written by") or not long


def test_every_page_is_named_in_readme():
    assert {path.name for path in ROOT.glob("docs/*.md")} <= set(re.findall(r"docs/([\w-]+\.md)", README))


def code(heading):
    """The first code of Python below a heading of README."""
    below = README.partition(f"\n{heading}")[2]
    return re.search(r"```python\n(.*?)```", below, re.DOTALL)[1]


def test_the_first_example_takes_seconds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    begin = sum(os.times()[:4])
    exec(compile(code("## A first example"), "README", "exec"), {})
    assert sum(os.times()[:4]) - begin < 30  # of processors, with those of the compiler: others may be busy
    said = capsys.readouterr().out
    assert "m1v4g128" in said
    assert float(re.search(r"error of the multiplication: (\S+)", said)[1]) < 2e-4
    assert (tmp_path / "layer.safetensors").exists()


def test_the_kernel_of_ones_own_takes_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(code("**A kernel of your own:**"))
    options = ["--shape", "64x128", "--config", "m1v4g128", "--kernels", "dense", "--seconds", "0", "--rounds", "1"]
    done = CliRunner().invoke(cli, ["compare", "--engine", "cpu", *options, "--plugin", "mine:Mine", "--batch", "1"])
    sys.modules.pop("mine")
    assert done.exit_code == 0, done.output
    assert re.search(r"^ *mine +m1v4g128 .* [0-9.]+ +[0-9.e-]+ *$", done.output, re.MULTILINE)
