"""Two runs side by side, in ratios of their ratios: what a machine's speed or another BLAS thread does to both sides of
a ratio is left out of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.cpu.measured import AUTO, DENSE, FAST, PSUMBOOK, Machine, Measured, Timed
from codegemm.reporting import by, counted, decimals, open_console, print_table

_OWN = (AUTO, FAST, PSUMBOOK)
Ratios = dict[tuple[int, str, str, int], dict[tuple[int, int], float]]


def ratios(new: Measured, old: Measured) -> Ratios:
    """By threads, what was taken, configuration and rows of x, then by shape: how many times as fast as in the old run
    a product is in the new one, both in terms of the dense product of their run."""
    found: Ratios = {}
    for row, kernel in _own(new):
        before = old.find(row.shape, row.threads, kernel, row.config, row.batch)
        now, then = new.times(row, DENSE), before and old.times(before, DENSE)
        if now and then:
            found.setdefault((row.threads, kernel, row.config, row.batch), {})[row.shape] = now / then
    return found


def _own(measured: Measured) -> Iterator[tuple[Timed, str]]:
    """The package's products, each with the first name that it is told by."""
    for row in measured.rows:
        names = [kernel for kernel in _OWN if row.is_by(kernel)]
        yield from ((row, name) for name in names[:1])


def print_comparison(new: tuple[Machine, Measured], old: tuple[Machine, Measured]) -> None:
    """A line a product."""
    console, found = open_console(), ratios(new[1], old[1])
    for name, (machine, _) in (("new", new), ("old", old)):
        console.print(f"{name}: {machine.device}, {machine.path}, {machine.commit or 'commit unknown'} {machine.date}")
    shapes = list(dict.fromkeys(shape for each in found.values() for shape in each))
    if not shapes:
        console.print("no product is in both")
        return
    rows = [
        [kernel, config, str(batch), str(threads), *(decimals(each.get(shape)) for shape in shapes)]
        for (threads, kernel, config, batch), each in sorted(found.items())
    ]
    headings = ("what", "weights", ">N", ">threads", *(f">{by(shape)}" for shape in shapes))
    print_table(console, f"Speed, new in terms of old, each in terms of {DENSE}", headings, rows)
    all_ratios = [ratio for each in found.values() for ratio in each.values()]
    mean, count = statistics.geometric_mean(all_ratios), counted(len(all_ratios), "product")
    console.print(f"{count}: geometric mean {mean:.2f}, the least {min(all_ratios):.2f}")
