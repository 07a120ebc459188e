"""Times the products of one case in interleaved rounds: every product has its turn in each of them.

So a machine that slows down for a while slows all of them down, and times that it changed differ from round to round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import numpy.typing as npt

from codegemm.comparison.selection import Entry
from codegemm.kernel import Product
from codegemm.measuring import conditions
from codegemm.measuring.stopwatch import Candidate, Ready, Timing, turn


@dataclass(eq=False)
class Timed:
    """A product that takes turns, and what these found."""

    entry: Entry
    product: Product
    ready: Ready
    seconds: list[float] = field(default_factory=list)
    calls: int = 0

    @property
    def timing(self) -> Timing:
        """Of all rounds so far."""
        return Timing(tuple(self.seconds), self.ready.how, self.calls)

    def take_turn(self, budget: float) -> None:
        """One more, of about so many seconds."""
        seconds, calls = turn(self.ready.call, budget)
        self.seconds.append(seconds)
        self.calls += calls


def prepared(entry: Entry, candidate: Candidate, x: npt.NDArray) -> list[Timed]:
    """The products of an entry, by its candidate, with the first rows of x."""
    return [Timed(entry, product, candidate.ready(x[: product.n])) for product in entry.products]


def run(
    timed: Sequence[Timed],
    x: npt.NDArray,
    rounds: int,
    budget: float,
    failed: Callable[[Timed, BaseException], None],
    advance: Callable[[], None],
) -> list[Timed]:
    """Those that went through so many rounds, every second one backwards; `budget` is the seconds of one product in all
    of them together.

    What raises an error, or writes to x, is told to `failed` and has no more turns.
    """
    before, last = x.copy(), None
    ordered = sorted(timed, key=lambda each: each.entry.instructions)  # other ones are another set of libraries
    for number in range(rounds):
        turns = ordered[::-1] if number % 2 else list(ordered)
        for instructions, group in groupby(turns, lambda each: each.entry.instructions):
            with conditions.path(instructions):
                for each in group:
                    kernel = each.entry.kernel
                    if kernel is not last and kernel.engine == "cpu":
                        conditions.settle()
                    last = kernel
                    try:
                        each.take_turn(budget / rounds)
                        if not np.array_equal(x, before):
                            x[...] = before
                            raise ValueError("it wrote to x")
                    except (Exception, SystemExit) as error:  # somebody's kernel must not take the others' times
                        ordered.remove(each)
                        failed(each, error)
        advance()
    return [each for each in timed if each in ordered]
