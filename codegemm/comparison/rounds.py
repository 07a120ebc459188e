"""Times the products of one case in interleaved rounds: every product has its turn in each of them.

So a machine that slows down for a while slows all of them down, and times that it changed differ from round to round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy.typing as npt

from codegemm.comparison.selection import Entry
from codegemm.kernel import Kernel, Product
from codegemm.measuring import conditions
from codegemm.measuring.stopwatch import QUIET, Candidate, Ready, Timing, turn

Failure = Callable[[Entry, Exception], None]


@dataclass
class Timed:
    """A product that takes turns, and what these found.

    instructions: the set that it is compiled for, or nothing. path: what its kernel makes of that.
    """

    entry: Entry
    product: Product
    instructions: str
    ready: Ready
    path: str = ""
    seconds: list[float] = field(default_factory=list)
    calls: int = 0

    @property
    def timing(self) -> Timing:
        """Of all rounds so far."""
        return Timing(tuple(self.seconds), self.ready.how, self.calls)

    def take_turn(self, budget: float) -> None:
        """One more, of about so many seconds."""
        self.path = self.entry.kernel.path()
        seconds, calls = turn(self.ready.call, budget)
        self.seconds.append(seconds)
        self.calls += calls


def prepared(entry: Entry, candidate: Candidate, x: npt.NDArray) -> list[Timed]:
    """The products of an entry, by its candidate, with the first rows of x."""
    ready = {product: candidate.ready(x[: product.n]) for product in entry.products}
    return [Timed(entry, product, path, ready[product]) for path in entry.paths for product in entry.products]


def run(timed: Sequence[Timed], rounds: int, budget: float, failed: Failure, advance: Callable[[], None]) -> None:
    """So many rounds, every second one backwards; `budget` is the seconds of one product in all of them together.

    What raises an error is told to `failed`, and its entry has no more turns.
    """
    out: set[int] = set()
    last: Kernel | None = None
    ordered = sorted(timed, key=lambda each: each.instructions)
    for number in range(rounds):
        for instructions, group in groupby(ordered[::-1] if number % 2 else ordered, lambda each: each.instructions):
            with conditions.path(instructions):
                for each in group:
                    kernel = each.entry.kernel
                    if id(each.entry) in out:
                        continue
                    if kernel is not last and kernel.engine == "cpu":
                        time.sleep(QUIET)
                    last = kernel
                    try:
                        each.take_turn(budget / rounds)
                    except Exception as error:  # somebody's kernel must not take the others' times with it
                        out.add(id(each.entry))
                        failed(each.entry, error)
        advance()
