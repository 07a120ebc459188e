"""How a product is cut into tasks: pure functions of the shape, so that results don't depend on the threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def split(count: int, most: int) -> npt.NDArray[np.int32]:
    """Bounds [parts + 1] that cut 0 .. count into the fewest near-equal parts of at most `most`."""
    parts = max(1, -(-count // most))
    return (np.arange(parts + 1) * count // parts).astype(np.int32)


def divisions(count: int, most: int) -> Iterator[int]:
    """Numbers of parts that 0 .. count may be cut into, as many in each, at most `most` of them; ascending."""
    parts = 1
    while parts <= most:
        yield parts
        each = -(-count // parts)
        if each == 1:
            return
        parts = -(-count // (each - 1))


def row_slices(part_rows: tuple[int, ...], most: int, unit: int = 1) -> npt.NDArray[np.int32]:
    """[slices, 3]: (part, first row, end row), none longer than `most` or across parts, cut at multiples of `unit`."""
    slices, start = [], 0
    for part, rows in enumerate(part_rows):
        bounds = start + np.minimum(unit * split(-(-rows // unit), most // unit), rows)
        slices += [(part, first, end) for first, end in itertools.pairwise(bounds)]
        start += rows
    return np.array(slices, np.int32)
