"""Two results side by side: the products that both measured, and how many times as fast the second is."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegemm.reporting import by, counted, format_time, open_console, print_table

_NEEDED = {"shape", "config", "batch", "kernel", "seconds"}
# Of the machine: what tells two runs apart though it makes no difference to times, and what is measured.
_TOLD_APART = ("date", "loads", "bandwidth", "bandwidths")
_OPTIONAL = ("path",)

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
        """Whether the quartiles of the two don't overlap."""
        (old_low, old_high), (low, high) = map(_quartiles, (self.before, self.after))
        return low > old_high or high < old_low

    @property
    def wrong(self) -> bool:
        """Whether one of them is no product at all."""
        return bool(self.before.get("wrong") or self.after.get("wrong"))


def read(path: str | Path) -> Data:
    """A result from its file; ValueError, with the file's name, for one without times of products."""
    try:
        data = json.loads(Path(path).read_text())
        rows = data.get("rows") or data.get("cuts")
        if not rows or not all(row.keys() >= _NEEDED and isinstance(row["seconds"], float) for row in rows):
            raise ValueError
    except (ValueError, AttributeError, TypeError):
        raise ValueError(
            f"{path}: must be what `codegemm compare --json` or `make gpu` wrote, with times of products"
        ) from None
    return data


def pairs(before: Data, after: Data) -> list[Pair]:
    """In the order of the second run; ValueError where they have no product in common."""
    old, new = before.get("rows") or before["cuts"], after.get("rows") or after["cuts"]
    with_case = all("case" in row for row in (*old, *new))
    key_old, key_new = (_key(rows, with_case) for rows in (old, new))
    known = {key_old(row): row for row in old}
    found = [Pair(known[key_new(row)], row, key_new(row)[0]) for row in new if key_new(row) in known]
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
        if name in _TOLD_APART or name not in old or name not in new or old[name] == new[name]:
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
    for line in differences(before, after):
        console.print(f"not alike: {line}")
    with_paths = any(pair.path for pair in found)
    headings = ["kernel", *["path"] * with_paths, "weights", ">batch", ">A", ">B", ">A / B", ""]
    for title in dict.fromkeys(map(_title, found)):
        lines = [_line(pair, with_paths) for pair in found if _title(pair) == title]
        print_table(console, title, headings, lines, _OPTIONAL)
    console.print(mean(found))
    if not all(pair.apart for pair in found):
        console.print("~  the quartiles overlap: no difference is shown")
    many = len(after.get("rows") or after["cuts"]) - len(found)
    if many:
        console.print(f"{counted(many, 'product')} of B {'is' if many == 1 else 'are'} not in A")


def _key(rows: list[Data], with_case: bool) -> Callable[[Data], tuple[Any, ...]]:
    """What tells the products of a run apart, its path first: only where it has several, since other processors take
    other paths."""
    several = len({row.get("path") or "" for row in rows} - {""}) > 1

    def key(row: Data) -> tuple[Any, ...]:
        path, case = row.get("path", "") if several else "", row["case"] if with_case else ""
        more = str(row.get("cut") or row.get("terms"))
        return path, case, *row["shape"], row["config"], row["batch"], row["kernel"], more

    return key


def _quartiles(row: Data) -> tuple[float, float]:
    """Where none were kept, the median twice."""
    lower, upper = row.get("quartiles") or 2 * [row["seconds"]]
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
