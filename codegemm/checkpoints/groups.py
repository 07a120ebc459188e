"""Which columns of W share a scale, and the groups of one size by which a weight here stores them."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.checkpoints.arguments import as_array
from codegemm.errors import CheckpointError

# Sizes of groups that are taken for meant where nothing but the number of groups is known: K=960 with 8 groups has
# groups of 128, the last of 64, and none of 120.
_USUAL = tuple(1 << bits for bits in range(4, 11))


@dataclass(frozen=True)
class Groups:
    """Groups as they are stored: columns in `order`, then `size` neighbours a group.

    size: a divisor of K. source: int [K/size], the checkpoint's group that each of them is a part of.
    order: int [K], by which columns of W are taken so that groups follow each other; None where they do.
    """

    size: int
    source: npt.NDArray[np.intp]
    order: npt.NDArray[np.intp] | None = None

    def spread(self, values: npt.NDArray) -> npt.NDArray:
        """Numbers [M, K/size, ...] of the stored groups, of those [M, groups, ...] of the checkpoint's."""
        return values[:, self.source]


def find_groups(columns: int, count: int, group_size: int | None = None, g_idx: Any = None) -> Groups:
    """Groups of `columns`, of which there are `count`, the last of which may be short.

    group_size: -1 for the whole row. g_idx: int32 or int64 [K], the group of each column. With neither a group is
    K / count columns where that is the whole row or a power of two from 16 to 1024. Raises CheckpointError where these
    contradict each other or don't say it.
    """
    if count < 1:
        raise CheckpointError("scales: there are no groups")
    stated = None if group_size is None else _stated(columns, count, group_size)
    if g_idx is not None:
        return _indexed(columns, count, stated, as_array("g_idx", g_idx, ("int32", "int64"), 1))
    size = _guessed(columns, count) if stated is None else stated
    return _consecutive(columns, size)


def _stated(columns: int, count: int, group_size: int) -> int:
    """The size of a group, at most the whole row."""
    try:
        size = operator.index(group_size)
    except TypeError:
        size = 0
    if size < 1 and size != -1:
        raise CheckpointError(f"group_size={group_size!r}: must be a positive integer, or -1 for the whole row")
    size = columns if size == -1 else min(size, columns)
    if -(-columns // size) != count:
        raise CheckpointError(
            f"group_size={group_size}: makes {-(-columns // size)} groups of {columns} columns, scales are of {count}"
        )
    return size


def _guessed(columns: int, count: int) -> int:
    size, rest = divmod(columns, count)
    if rest or (count > 1 and size not in _USUAL):
        raise CheckpointError(
            f"scales: {count} groups of {columns} columns don't say how many columns a group has (the last may be "
            "short): give group_size="
        )
    return size


def _indexed(columns: int, count: int, stated: int | None, index: npt.NDArray) -> Groups:
    """By each column's group, in any order."""
    if index.shape != (columns,):
        raise CheckpointError(f"g_idx: shape {index.shape}, must be ({columns},)")
    if index.min() < 0 or index.max() >= count:
        raise CheckpointError(f"g_idx: {index.min()} to {index.max()}, must be from 0 to {count - 1}")
    sizes = np.bincount(index, minlength=count)
    size = int(sizes[0])
    if (sizes[:-1] != size).any() or not 0 < sizes[-1] <= size:
        found = ", ".join(map(str, np.unique(sizes)))
        raise CheckpointError(f"g_idx: groups of {found} columns, must be of one size, but for a shorter last one")
    if stated is not None and stated != size:
        raise CheckpointError(f"group_size={stated}: the groups of g_idx have {size} columns")
    groups = _consecutive(columns, size)
    if (np.diff(index) >= 0).all():
        return groups
    return Groups(groups.size, groups.source, np.argsort(index, kind="stable"))


def _consecutive(columns: int, size: int) -> Groups:
    """A short last group and the others are cut into pieces of one size."""
    piece = gcd(columns, size)
    return Groups(piece, np.arange(0, columns, piece) // size)
