"""The weights that kernels are tried with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from codegemm.formats.format import random_weight, registered, spec_of
from codegemm.formats.weight import Weight, concat


class Problem(NamedTuple):
    """A weight [rows, columns] in a configuration; of several parts that were joined."""

    rows: int
    columns: int
    config: str
    parts: int = 1

    def __str__(self) -> str:
        return "-".join(map(str, self))

    def weight(self, seed: int) -> Weight:
        """Such a one with random contents, on the CPU."""
        rows, columns, config, parts = self
        bounds = list(itertools.pairwise(rows * part // parts for part in range(parts + 1)))
        if parts == 1 or "+ordered" in config or "+rotated" in config:  # joined parts have one order and one rotation
            whole: Weight = random_weight((rows, columns), config, seed)
            return whole if parts == 1 else concat([whole[first:end] for first, end in bounds])
        shapes = [(end - first, columns) for first, end in bounds]
        return concat([random_weight(shape, config, seed + part) for part, shape in enumerate(shapes)])


# Shapes that no number of rows or columns at a time divides, and some large enough to be cut into tasks.
PROBLEMS = [
    Problem(1, 64, "m1v4g32"),
    Problem(100, 512, "m1v4g128"),
    Problem(77, 512, "m2v8g128"),
    Problem(33, 7, "m8v1b1g1"),
    Problem(50, 96, "m1v3b2g3"),
    Problem(100, 180, "m3v5b5g15"),
    Problem(300, 96, "m1v4b3g12", 3),
    Problem(31, 528, "m2v11b7g-1"),
    Problem(130, 4096, "m2v8g-1", 2),
    Problem(5, 1216, "m1v4g4"),
    Problem(3000, 64, "m1v4b6g32", 2),
    Problem(96, 64, "m1v8b16g-1"),
    Problem(65, 128, "m1v16b16g64"),
    Problem(20, 96, "m4v6b12g12"),
    Problem(17, 390, "m2v13b9g26", 2),
    Problem(130, 390, "m3v13g26"),
    Problem(4100, 208, "m2v16b8g16"),
    Problem(600, 312, "q2g24", 2),
    Problem(77, 90, "q1v5g15"),
    Problem(64, 128, "e8p"),
    Problem(192, 768, "e8p"),
    Problem(48, 448, "e8p3"),
    Problem(48, 448, "e8p4"),
    Problem(64, 128, "qtip"),
    Problem(192, 768, "qtip"),
    Problem(96, 64, "qtip3"),
    Problem(32, 1152, "qtip4"),
    Problem(77, 512, "m2v8g128+rotated"),
    Problem(300, 96, "m1v4b3g12+rotated8+offsets", 3),
    Problem(33, 30, "m1v3b5g6+rotated1"),
    Problem(9, 1216, "m1v4g4+offsets"),
    Problem(257, 640, "m2v8g-1+rotated+added", 2),
    Problem(31, 132, "m1v4b4g44+terms3"),
    Problem(40, 96, "m1v2b8g24+rotated+added+terms2"),
    Problem(20, 96, "m4v6b12g12+rotated+offsets"),
    Problem(300, 104, "m1v4b3g8+ordered", 3),
    Problem(45, 96, "m2v8g-1+ordered+rotated+offsets"),
]
_EXAMPLE_SHAPES = ((9, 96), (32, 128), (16, 64), (5, 120), (64, 256))


def example(config: str) -> Problem:
    """A configuration in the first shape that it can be stored in; ValueError where there is none."""
    reason = ValueError(config)
    for shape in _EXAMPLE_SHAPES:
        try:
            spec_of(shape, config)
        except ValueError as error:
            reason = error
        else:
            return Problem(*shape, config)
    raise reason


def problems() -> Iterator[Problem]:
    """Those above, and the examples of every format that is registered."""
    yield from PROBLEMS
    for format in registered():
        yield from map(example, format.examples)
