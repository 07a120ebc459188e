"""Where something else is faster than this package's own kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from codegemm.report.products import FAST, Product


@dataclass(frozen=True)
class Loss:
    """A shape and batch in which others are faster than `own` (`cells`): `others`, from the fastest on."""

    own: Product
    others: tuple[Product, ...]

    @property
    def factor(self) -> float:
        """How many times as fast the fastest is."""
        return self.own.seconds / self.others[0].seconds

    @property
    def overlap(self) -> bool:
        """Whether the quartiles of both overlap, so that no difference is shown."""
        mine, other = self.own.quartiles, self.others[0].quartiles
        return mine is not None and other is not None and other[1] >= mine[0]


def cells(products: Iterable[Product]) -> list[Product]:
    """The package's own kernel for each shape, batch, configuration and instruction set: the one that `auto` takes, or
    the fastest where it takes none of them."""
    found: dict[tuple[object, ...], Product] = {}
    own = (each for each in products if each.own and each.kernel != FAST and each.config and not each.wrong)
    for each in sorted(own, key=lambda each: (not each.chosen, each.seconds)):
        found.setdefault((each.case, each.shape, each.batch, each.config, each.path), each)
    return list(found.values())


def losses(products: Iterable[Product]) -> Iterator[Loss]:
    """Of one run; those by the largest factor first. A wrong product has no part."""
    right = [each for each in products if not each.wrong]
    rivals: dict[tuple[object, ...], list[Product]] = {}
    for each in right:
        if not each.own:
            rivals.setdefault((each.case, each.shape, each.batch), []).append(each)
    found = []
    for own in cells(right):
        here = rivals.get((own.case, own.shape, own.batch), [])
        faster = [each for each in here if each.path in ("", own.path) and each.seconds < own.seconds]
        if faster:
            found.append(Loss(own, tuple(sorted(faster, key=lambda each: each.seconds))))
    yield from sorted(found, key=lambda loss: -loss.factor)
