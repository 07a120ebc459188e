"""How the package hangs together: imports run downhill, those inside functions too."""

import re

import pytest
from support import ROOT
from support.imports import circles, import_graph

PACKAGE = ROOT / "codegemm"


def test_imports_run_downhill():
    each_other = circles(import_graph(PACKAGE))
    assert not each_other, "modules import each other:\n" + "\n".join(each_other)


def test_links_to_folders_are_followed():
    graph = import_graph(PACKAGE)
    assert graph["codegemm.baselines"]
    assert graph.keys() >= {"codegemm", "codegemm.kernels_cu", "codegemm.checkpoints.quip"}


def test_no_test_module_is_imported():
    """By whatever is in tests/: they are found by name, and collected once."""
    files = (ROOT / "tests").rglob("*.py")
    pattern = re.compile(r"^ *(?:from|import) .*\btest_\w+.*", re.MULTILINE)
    found = [f"{file.name}: {line}" for file in files for line in pattern.findall(file.read_text())]
    assert not found, "what several modules need lies in tests/support:\n" + "\n".join(found)


@pytest.fixture
def made_up(tmp_path):
    """The folder of a package `p` with these sources by path."""

    def write(sources):
        for name, source in {"p/__init__.py": "", **sources}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return tmp_path / "p"

    return write


@pytest.mark.parametrize(
    "back",
    [
        "def f():\n    from p import a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import A",
        "import p.a",
        "from . import a",
        "import importlib\nimportlib.import_module('p.a')",
    ],
)
def test_a_circle_is_named(back, made_up):
    package = made_up({"p/a.py": "from p.b import B", "p/b.py": "import p.c", "p/c.py": back, "p/d.py": "import p.a"})
    assert circles(import_graph(package)) == ["p.a -> p.b -> p.c -> p.a"]


def test_every_circle_is_named_once(made_up):
    package = made_up({
        "p/a.py": "import p.a", "p/b/__init__.py": "from p.b import inner", "p/b/inner.py": "from p.b import B",
    })  # fmt: skip
    assert circles(import_graph(package)) == ["p.a -> p.a", "p.b -> p.b.inner -> p.b"]


def test_downhill_is_no_circle(made_up):
    """A package that names its modules, which import each other one way and, by themselves, their parents."""
    package = made_up({
        "p/__init__.py": "from p.a import A\nfrom p.b import c", "p/a.py": "def f():\n    from p.b.c import C, d",
        "p/b/__init__.py": "", "p/b/c.py": "from p.d import D\nimport numpy", "p/d.py": "from other import p",
    })  # fmt: skip
    graph = import_graph(package)
    assert graph == {"p": {"p.a", "p.b.c"}, "p.a": {"p.b.c"}, "p.b": set(), "p.b.c": {"p.d"}, "p.d": set()}
    assert circles(graph) == []
