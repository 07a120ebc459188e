"""Two results side by side: the products that both measured, and how many times as fast the second is."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegemm.reporting import by, counted, format_time, open_console, print_table

_NEEDED = {"shape", "config", "batch", "kernel", "seconds"}
# Of the machine: what is measured, and so differs between any two runs.
_MEASURED = ("date", "loads", "others", "bandwidth", "bandwidths", "multiply_adds", "lookups")

Data = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A product that both runs measured, as their rows have it. path: of kernels, where a run measured several."""

    before: Data
    after: Data
    path: str = ""

    @property
    def ratio(self) -> float:
        """How many times as fast the second run is."""
        return self.before["seconds"] / self.after["seconds"]

    @property
    def apart(self) -> bool:
        """Whether every round of one was faster than every one of the other; of runs without rounds, the quartiles."""
        (old_low, old_high), (low, high) = map(_range, (self.before, self.after))
        return low > old_high or high < old_low

    @property
    def wrong(self) -> bool:
        """Whether one of them is no product at all."""
        return bool(self.before.get("wrong") or self.after.get("wrong"))


def read(path: str | Path, kind: str = "rows") -> Data:
    """A result from its file; ValueError, with the file's name, for one without times of products.

    kind: `rows`, or `cuts` for those of `make gpu PART=cuts`, too.
    """
    try:
        data = json.loads(Path(path).read_bytes())
        usable = all(map(_is_product, data.get("rows") or data[kind]))
    except (ValueError, AttributeError, TypeError, LookupError):
        usable = False
    if not usable:
        raise ValueError(f"{path}: must be what `codegemm compare --json` or `make gpu` wrote, with times of products")
    return data


def pairs(before: Data, after: Data) -> list[Pair]:
    """In the order of the second run; ValueError where they have no product in common."""
    old, new = _products(before), _products(after)
    # Other processors take other paths: they tell products apart only where a run has several.
    several = any(len({row.get("path") or "" for row in rows} - {""}) > 1 for rows in (old, new))
    with_case = all("case" in row for row in (*old, *new))
    known = {_key(row, several, with_case): row for row in old}
    keys = [_key(row, several, with_case) for row in new]
    found = [Pair(known[key], row, key[0]) for key, row in zip(keys, new) if key in known]
    if not found:
        raise ValueError("nothing to compare: no product is in both")
    return found


def mean(found: list[Pair]) -> str:
    """Of all that are right, in words."""
    right = [pair.ratio for pair in found if not pair.wrong]
    if not right:
        return "none of the products is right in both"
    return f"{counted(len(right), 'product')}, geometric mean {statistics.geometric_mean(right):.3f} x"


def machine(result: Data) -> Data:
    """What a result says of its machine."""
    return result.get("machine") or {key: value for key, value in result.items() if not isinstance(value, list)}


def differences(before: Data, after: Data) -> Iterator[str]:
    """What the two were not measured alike with, a line each."""
    old, new = machine(before), machine(after)
    for name in dict.fromkeys((*old, *new)):
        if name in _MEASURED or name not in old or name not in new or old[name] == new[name]:
            continue
        yield f"{name}: {_text(old[name])} -> {_text(new[name])}"


def print_tables(first: str | Path, second: str | Path) -> None:
    """A table for each case, the machines, and what differs between them."""
    before, after = read(first), read(second)
    found, console = pairs(before, after), open_console()
    for name, path, result in (("A", first, before), ("B", second, after)):
        told = machine(result)
        words = (told.get("device"), told.get("date"), told.get("commit") and f"commit {told['commit']}")
        console.print(f"{name}  {path}: {', '.join(filter(None, words))}")
        for sign in result.get("disturbances", ()):
            console.print(f"{name}  was disturbed: {sign}", style="bold")
    for line in differences(before, after):
        console.print(f"not alike: {line}")
    with_paths = any(pair.path for pair in found)
    headings = ["kernel", *["path"] * with_paths, "weights", ">batch", ">A", ">B", ">A / B", ""]
    for title in dict.fromkeys(map(_title, found)):
        lines = [_line(pair, with_paths) for pair in found if _title(pair) == title]
        print_table(console, title, headings, lines)
    console.print(mean(found))
    if not all(pair.apart for pair in found):
        console.print("~  the two overlap: no difference is shown")
    for name, result in (("A", before), ("B", after)):
        alone = len(_products(result)) - len(found)
        if alone > 0:
            console.print(f"{counted(alone, 'product')} of {name} not among the other's")


def _products(result: Data) -> list[Data]:
    return result.get("rows") or result["cuts"]


def _key(row: Data, several: bool, with_case: bool) -> tuple[Any, ...]:
    """What tells the products of a run apart, its path first. Of random codes, the shape says all."""
    case = row["case"] if with_case else ""
    if case.endswith("(random codes)") or case == by(row["shape"]):
        case = ""
    path, more = row.get("path", "") if several else "", str(row.get("cut") or row.get("terms"))
    return path, case, *row["shape"], row["config"], row["batch"], row["kernel"], more


def _is_product(row: Data) -> bool:
    return row.keys() >= _NEEDED and row["seconds"] > 0 and len(row["shape"]) == 2 and len(_range(row)) == 2


def _range(row: Data) -> tuple[float, float]:
    """Of the rounds, else the quartiles; where none were kept, the median twice."""
    rounds = row.get("rounds")
    lower, upper = (min(rounds), max(rounds)) if rounds else row.get("quartiles") or 2 * [row["seconds"]]
    return lower, upper


def _title(pair: Pair) -> str:
    return pair.after.get("case") or by(pair.after["shape"])


def _line(pair: Pair, with_paths: bool) -> list[str]:
    old, new = pair.before, pair.after
    return [
        new["kernel"], *[pair.path] * with_paths, new["config"], str(new["batch"]),
        format_time(old["seconds"]), format_time(new["seconds"]), f"{pair.ratio:.2f}",
        "wrong" if pair.wrong else "" if pair.apart else "~",
    ]  # fmt: skip


def _text(value: Any) -> str:
    """Of plain data, short."""
    if isinstance(value, list):
        return "; ".join(map(_text, value)) or "none"
    return ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else str(value)
