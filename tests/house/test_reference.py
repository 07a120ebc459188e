"""The public API has docstrings, from which `make docs` makes its reference."""

import importlib
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

from support.reference import MODULES, as_markdown, undocumented, write


def module(**names):
    return SimpleNamespace(__name__="m", __all__=list(names), **names)


def test_public_names_have_docstrings():
    lacking = undocumented(map(importlib.import_module, MODULES))
    assert not lacking, f"without a docstring: {', '.join(lacking)}"


class Described:
    """Said."""

    def method(self):
        """Said."""

    @property
    def number(self):
        """Said."""


class Heir(Described):
    """Said; the methods are described above."""

    def method(self):
        pass

    @property
    def number(self):
        pass

    def _private(self):
        pass


class Silent(Described):
    def told(self):
        """Said."""

    def method_of_its_own(self):
        pass

    @classmethod
    def of(cls):
        pass

    @property
    def size(self):
        pass

    @cached_property
    def kept(self):
        pass


@dataclass
class Record:
    number: int


def test_what_has_no_docstring_is_named():
    def function():
        pass

    found = undocumented([module(function=function, Heir=Heir, Silent=Silent, Record=Record, text="a")])
    members = ("kept", "method_of_its_own", "of", "size")
    assert found == ["m.function", "m.Silent", *(f"m.Silent.{name}" for name in members), "m.Record"]


def test_lines_that_describe_arguments_are_a_list():
    docstring = "Text: all\n\nx, y: [n, K]. z: else\n    more. Note: a\n_w: b"
    assert (
        as_markdown(docstring) == "- **Text:** all\n\n- **x, y:** [n, K]. **z:** else\n    more. Note: a\n- **_w:** b"
    )


def test_plain_text_stays_as_it_is():
    assert as_markdown("A 2**b of <name>, `a*<b>: c`") == r"A 2\*\*b of \<name>, `a*<b>: c`"


def test_the_reference_is_written(tmp_path):
    write(tmp_path)
    page = (tmp_path / "codegemm.html").read_text()
    assert 'id="compare"' in page
    assert 'id="Plan.__call__"' in page
    pages = {"index", *(name.rpartition(".")[2] for name in MODULES)}
    assert {file.stem for file in tmp_path.rglob("*.html")} == pages
