"""Which configuration each matrix gets, so that the least is lost in so many bits: a knapsack of several choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_STATES = 1 << 13  # that are gone on with; up to so many the result is exact
_ROUNDING = 1e-12  # by which a whole number of bits, divided by the weights and multiplied again, may come out less


@dataclass(frozen=True)
class Option:
    """A way to store an item. bits: of all of it, codebooks and scales included. loss: what it costs, additive."""

    bits: int
    loss: float


@dataclass(frozen=True)
class Item:
    """Matrices that get the same configuration. size: their weights. options: by configuration, at least one."""

    size: int
    options: Mapping[str, Option]


def check(items: Mapping[str, Item], bits: float) -> None:
    """ValueError unless so many bits a weight, over all items, are between the least and the most that they take."""
    size = sum(item.size for item in items.values())
    least, most = (
        sum(pick(option.bits for option in item.options.values()) for item in items.values()) / size
        for pick in (min, max)
    )
    if not least <= bits <= most:
        raise ValueError(
            f"bits={bits:g}: the configurations to choose from take from {least:.4f} to {most:.4f} bits a weight over "
            "all matrices, codebooks and scales counted"
        )


def choose(items: Mapping[str, Item], bits: float) -> dict[str, str]:
    """By item the configuration with which the sum of losses is least, in at most `bits` a weight over all of them.

    ValueError as of `check`. Item by item it is found which sums of bits and losses can be reached, and those that
    others beat in both are dropped. Where too many are left, neighbours in bits are taken for one: the loss is then the
    least but for about a thousandth of the bits.
    """
    check(items, bits)
    rest = sum(min(option.bits for option in item.options.values()) for item in items.values())
    room = int(bits * sum(item.size for item in items.values()) * (1 + _ROUNDING))
    front, steps = _Front(np.zeros(1, np.int64), np.zeros(1)), []
    for item in items.values():
        rest -= min(option.bits for option in item.options.values())
        front, step = _with(front, item, room - rest)
        steps.append(step)
    place, found = len(front.bits) - 1, dict[str, str]()
    for name, step in zip(reversed(list(items)), reversed(steps)):
        found[name] = list(items[name].options)[step.options[place]]
        place = int(step.before[place])
    return {name: found[name] for name in items}


class _Front(NamedTuple):
    """Sums that can be reached, by bits: each loses less than those of fewer bits."""

    bits: npt.NDArray[np.int64]
    losses: npt.NDArray[np.float64]


class _Step(NamedTuple):
    """Of each sum, of which one before it was made by which option."""

    before: npt.NDArray[np.int32]
    options: npt.NDArray[np.int16]


def _with(front: _Front, item: Item, room: int) -> tuple[_Front, _Step]:
    """The sums with one item more, in so many bits."""
    options = list(item.options.values())
    bits = np.add.outer([option.bits for option in options], front.bits).ravel()
    losses = np.add.outer([option.loss for option in options], front.losses).ravel()
    fits = np.flatnonzero(bits <= room)
    order = fits[np.lexsort((losses[fits], bits[fits]))]
    lowest = np.minimum.accumulate(losses[order])
    order = order[np.append(True, lowest[1:] < lowest[:-1])]
    if len(order) > _STATES:
        heaps = (bits[order] - bits[order[0]]) * _STATES // (bits[order[-1]] - bits[order[0]] + 1)
        order = order[np.append(heaps[1:] > heaps[:-1], True)]  # of neighbours the last, which loses least
    number, place = np.divmod(order, len(front.bits))
    return _Front(bits[order], losses[order]), _Step(place.astype(np.int32), number.astype(np.int16))
