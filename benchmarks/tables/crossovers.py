"""Which kernel was the fastest, for `auto` to look up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any

from benchmarks.tables.files import Row
from codegemm.formats.format import spec_of
from codegemm.registry import registered
from codegemm.tables import Choice


def crossovers(reports: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The fastest automatic kernel of each weight, for runs of measured batches, by architecture."""
    automatic = {kernel.name for kernel in registered("cuda") if kernel.automatic}
    choices: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        fastest: dict[tuple[str, tuple[int, int]], dict[int, Row]] = {}
        for row in report["rows"]:
            if row["kernel"] in automatic:
                shape = tuple(row["shape"])
                best = fastest.setdefault((spec_of(shape, row["config"]).name, shape), {})
                if row["batch"] not in best or row["seconds"] < best[row["batch"]]["seconds"]:
                    best[row["batch"]] = row
        for (weights, shape), best in fastest.items():
            choices.setdefault(str(report["arch"]), []).extend(
                asdict(Choice(weights, shape, batches, "float16", kernel)) for batches, kernel in _runs(best)
            )
    return choices


def _runs(best: dict[int, Row]) -> Iterator[tuple[tuple[int, int], str]]:
    """((first batch, last batch), kernel) of neighbouring batches whose fastest kernel is the same."""
    for kernel, batches in groupby(sorted(best), key=lambda n: best[n]["kernel"]):
        first, *_, last = 2 * list(batches)
        yield (first, last), kernel
