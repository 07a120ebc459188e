"""The tables of counters in docs/kernels.md: of which compiler they are, and that they are current."""

import re

import pytest
from emulator import cases, table
from support import ROOT

DOCUMENT = table.DOCUMENT.read_text()
NOTED = re.search(table.NOTE, DOCUMENT)[0]


def test_the_compiler_of_the_tables_is_that_of_the_tests():
    pinned = re.search(rf"^{table.PACKAGE}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert f"NVRTC {pinned}" == NOTED, "constraints.txt has another compiler than the tables: run `make counters`"


@pytest.mark.parametrize("name", table.TABLES if cases.ALL else ["kernels"])
def test_counters_in_the_documentation_are_current(name):
    if table.compiler_here() != NOTED:
        pytest.skip(f"nothing was compared: {table.compiler_here()} is here, the tables are of {NOTED}")
    assert table.renewed(DOCUMENT, [name]) == DOCUMENT, "run `make counters`"
