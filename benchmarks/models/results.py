"""What was found of each case, a file for each in benchmarks/results/models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.models.cases import WAYS, Case


@dataclass(frozen=True)
class Found:
    """bits: of a quantised weight. texts: by name, what `steps.evaluated` tells of each. seconds: see `steps.Made`.
    tokens: calibrated, distilled and evaluated. device, cores: where, and how many of its cores could be used."""

    case: Case
    bits: float
    texts: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    tokens: Mapping[str, int]
    device: str
    cores: int
    version: str

    def of(self, measure: str) -> dict[str, float]:
        """A number of each text."""
        return {text: float(numbers[measure]) for text, numbers in self.texts.items()}


def read(folder: Path) -> list[Found]:
    """Those of a folder, by bits and, of one configuration, by ways; ValueError for a file of no such way, and for one
    whose texts are not those of the others: numbers of several texts are not to be compared."""
    found: dict[Path, Found] = {}
    for path in sorted(folder.glob("*.json")):
        told = json.loads(path.read_text())
        case = Case(told["case"]["config"], told["case"]["way"])
        if case.way not in WAYS or path.stem != case.name:
            raise ValueError(f"{path}: is of {case.name!r}, must be of {path.stem!r} and a way of {', '.join(WAYS)}")
        found[path] = Found(case, **{each.name: told[each.name] for each in fields(Found)[1:]})
    for path, each in found.items():
        first, other = next(iter(found.items()))
        if _texts(each) != _texts(other):
            raise ValueError(f"{path}: has other texts than {first.name}, or another number of predictions")
    ways = list(WAYS)
    least: dict[str, float] = {}
    for each in found.values():
        least[each.case.config] = min(each.bits, least.get(each.case.config, each.bits))

    def place(each: Found) -> tuple[float, str, int]:
        return least[each.case.config], each.case.config, ways.index(each.case.way)

    return sorted(found.values(), key=place)


def _texts(found: Found) -> dict[str, tuple[str, int]]:
    return {name: (numbers["sha256"], numbers["predictions"]) for name, numbers in sorted(found.texts.items())}


def text_names(found: list[Found]) -> list[str]:
    """Of all, in the order that the first has them."""
    return list(found[0].texts) if found else []
