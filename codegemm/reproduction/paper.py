"""The paper's own figures, from one cited file: the only ones in this project that no command of it measures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("paper.json")


@dataclass(frozen=True)
class Published:
    """A table as the paper has it: what its numbers are in (empty where each column has its own), columns and rows."""

    unit: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]


def citation() -> str:
    """Of the paper, and what it measured on."""
    return f"{_read()['citation']} ({_read()['machine']})"


def machine() -> str:
    """What the paper measured on."""
    return str(_read()["machine"])


def published(name: str) -> Published:
    """One of its tables, like `table2`."""
    table = _read()["tables"][name]
    return Published(
        table["unit"], tuple(table["columns"]), {row: tuple(cells) for row, cells in table["rows"].items()}
    )


@cache
def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_FILE.read_text())
    return found
