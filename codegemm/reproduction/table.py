"""A table of the paper's with its numbers and ours, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from codegemm.reproduction.paper import published

Number = float | None
Ratio = Callable[[Sequence[Sequence[Number]], int, int], Number]  # of numbers, by row and column


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers by row and column, None where there is none.

    unit: of all numbers; empty where each column has its own. paper: None where the paper has the experiment as a
    picture. ratio: what a number is in terms of its baseline's, or None; `in_terms` says in words. predicted: whether
    ours are by a cost model. noisy: rows and columns of ours whose times say little. notes: what is to be known of
    ours.
    """

    name: str
    title: str
    caption: str
    unit: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    paper: tuple[tuple[Number, ...], ...] | None
    ours: tuple[tuple[Number, ...], ...]
    baseline: str = ""
    in_terms: str = ""
    predicted: bool = False
    noisy: frozenset[tuple[str, str]] = frozenset()
    notes: tuple[str, ...] = ()
    ratio: Ratio | None = field(default=None, repr=False)

    @classmethod
    def beside(cls, name: str, title: str, caption: str, ours: Sequence[Sequence[Number]], **more: Any) -> Self:
        """Ours beside the paper's of that name."""
        paper = published(name)
        return cls(
            name=name,
            title=title,
            caption=caption,
            unit=paper.unit,
            rows=tuple(paper.rows),
            columns=paper.columns,
            paper=tuple(paper.rows.values()),
            ours=tuple(map(tuple, ours)),
            **more,
        )

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Self:
        """What `as_json` made; KeyError, TypeError or ValueError for what is no table."""
        rows, columns = tuple(str(row[0]) for row in data["ours"]), tuple(map(str, data["columns"]))
        baseline = data.get("baseline") or ""
        ratio = None
        if baseline in columns:
            ratio = as_fast_as(columns.index(baseline))
        elif baseline in rows:
            ratio = as_much_as(rows.index(baseline))

        def numbers(labelled: Sequence[Sequence[Any]]) -> tuple[tuple[Number, ...], ...]:
            found = tuple(tuple(None if cell is None else float(cell) for cell in cells) for _, *cells in labelled)
            if [len(cells) for cells in found] != [len(columns)] * len(rows):
                raise ValueError(f"{data['name']}: must have {len(rows)} rows of {len(columns)} numbers")
            return found

        return cls(
            name=str(data["name"]),
            title=str(data["title"]),
            caption=str(data.get("caption", "")),
            unit=str(data.get("unit", "")),
            rows=rows,
            columns=columns,
            paper=None if data.get("paper") is None else numbers(data["paper"]),
            ours=numbers(data["ours"]),
            baseline=baseline,
            in_terms=str(data.get("in_terms", "")),
            predicted=bool(data.get("predicted")),
            noisy=frozenset((str(row), str(column)) for row, column in data.get("noisy", ())),
            notes=tuple(filter(None, [str(data.get("note", ""))])),
            ratio=ratio,
        )

    def ratios(self, numbers: Sequence[Sequence[Number]] | None) -> tuple[tuple[Number, ...], ...] | None:
        """The paper's or ours in terms of the baseline."""
        if numbers is None or self.ratio is None:
            return None
        return tuple(
            tuple(self.ratio(numbers, row, column) for column in range(len(self.columns)))
            for row in range(len(self.rows))
        )

    def cells(self) -> Iterator[tuple[str, str, Number, Number, Number, Number]]:
        """Row and column, the paper's number and its ratio, ours and its ratio."""
        theirs, mine = self.ratios(self.paper), self.ratios(self.ours)
        for i, row in enumerate(self.rows):
            for j, column in enumerate(self.columns):
                paper, ratio, ours, our_ratio = (each and each[i][j] for each in (self.paper, theirs, self.ours, mine))
                yield row, column, paper or None, ratio or None, ours or None, our_ratio or None

    def as_json(self) -> dict[str, Any]:
        """Rows with their label first."""

        def labelled(numbers: Sequence[Sequence[Number]] | None) -> list[list[Any]] | None:
            return None if numbers is None else [[label, *cells] for label, cells in zip(self.rows, numbers)]

        return {
            "name": self.name, "title": self.title, "caption": self.caption, "unit": self.unit,
            "columns": list(self.columns), "paper": labelled(self.paper), "ours": labelled(self.ours),
            "ratios": {"paper": labelled(self.ratios(self.paper)), "ours": labelled(self.ratios(self.ours))},
            "baseline": self.baseline, "in_terms": self.in_terms, "predicted": self.predicted,
            "noisy": sorted(map(list, self.noisy)), "note": " ".join(self.notes),
        }  # fmt: skip


def as_fast_as(base: int) -> Ratio:
    """How many times as fast as that column of the row, where numbers are times."""

    def ratio(numbers: Sequence[Sequence[Number]], row: int, column: int) -> Number:
        reference, number = numbers[row][base], numbers[row][column]
        return reference / number if reference and number else None

    return ratio


def as_much_as(base: int) -> Ratio:
    """How many times as much as that row of the column."""

    def ratio(numbers: Sequence[Sequence[Number]], row: int, column: int) -> Number:
        reference, number = numbers[base][column], numbers[row][column]
        return number / reference if reference and number else None

    return ratio
