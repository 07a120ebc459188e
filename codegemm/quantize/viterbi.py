"""The nearest tail-biting paths through QTIP's trellis (`codegemm.formats.trellis`), by Viterbi's algorithm.

Of a state s of 16 bits the last ones are its group, the first ones of every state that may follow; the first 2k bits,
the choice, are what s forgets of the group that it came from. So a step keeps one cost for each group, the least of its
states', each of which is that of one group before and of its own pair. Costs of all steps are kept, and the way back
asks once more which state was the best.

A path ends in the group it begins with. A first search, of the tile turned by half, has free ends and says which group
lies where they meet; the second begins and ends with that.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.engines import declarations
from codegemm.engines.cpu import library
from codegemm.formats import trellis
from codegemm.quantize.arithmetic import Arithmetic

SOURCE = Path(__file__).parent / "src" / "viterbi.cpp"
ViterbiArgs = declarations.structure(SOURCE, "ViterbiArgs")
_TOGETHER, _ROOM = (declarations.constant(SOURCE, name) for name in ("together", "room"))
_PIECE = 1024  # tiles at a time, between which it may be interrupted

Tiles = npt.NDArray[np.float32]
States = npt.NDArray[np.uint16]


class Search:
    """The nearest paths by a table [512, 2] for k = 2, 3 or 4 bits a weight: compiled; by arrays of `ops` where these
    are on a GPU or there is no compiler.

    pairs: float32 [65536, 2], what states stand for.
    """

    def __init__(self, table: npt.NDArray, bits: int, ops: Arithmetic) -> None:
        self.pairs = trellis.grid(table, np.float32)
        self._bits, self._ops = bits, ops
        self._function: Any = None if ops.name == "cuda" else library.function(SOURCE, "viterbi", ViterbiArgs)

    def __call__(self, tiles: Tiles, advance: Callable[[int], None] = lambda tiles: None) -> States:
        """States [n, 128] for tiles [n, 128, 2]; advance: told how many more are done."""
        states = np.empty(tiles.shape[:2], np.uint16)
        for first in range(0, len(tiles), _PIECE):
            piece = slice(first, first + _PIECE)
            found = states[piece]
            if self._function:
                self._compiled(np.ascontiguousarray(tiles[piece], np.float32), found)
            else:
                self._by_arrays(tiles[piece], found)
            advance(len(found))
        return states

    def _compiled(self, tiles: Tiles, states: States) -> None:
        workers = min(library.get_num_threads(), -(-len(tiles) // _TOGETHER))
        arrays = {
            "weights": tiles,
            "pairs": self.pairs,
            "paths": states,
            "branches": np.empty(3 * len(self.pairs), np.float32),
            "costs": np.empty((workers, trellis.STEPS + 1, _TOGETHER, _ROOM), np.float32),
        }
        numbers = {"tiles": len(tiles), "bits": self._bits, "workers": workers}
        addresses = {name: library.address(array) for name, array in arrays.items()}
        self._function(byref(ViterbiArgs(**addresses, **numbers)))

    def _by_arrays(self, tiles: Tiles, states: States) -> None:
        block = max(1, self._ops.block // len(self.pairs))
        search = _Arrays(self.pairs, self._bits, self._ops)

        def work(first: int) -> None:
            states[first : first + block] = search(tiles[first : first + block])

        self._ops.map(work, range(0, len(tiles), block))


class _Arrays:
    """The same with an Arithmetic: arrays of blocks of tiles."""

    def __init__(self, pairs: Tiles, bits: int, ops: Arithmetic) -> None:
        self._ops, self._shift = ops, trellis.PAIR * bits
        self._choices, self._groups = 1 << self._shift, 1 << trellis.WINDOW - self._shift
        columns = (pairs[:, 0], pairs[:, 1], (pairs**2).sum(1) / 2)
        self._first, self._second, self._half = (ops.put(np.ascontiguousarray(column)) for column in columns)
        self._begins = ops.put(np.arange(self._choices) * self._groups)

    def __call__(self, tiles: Tiles) -> npt.NDArray:
        """States [n, 128] of tiles [n, 128, 2]."""
        weights, every = self._ops.put(tiles), list(range(trellis.STEPS))
        overlap = self._overlap(weights, every[len(every) // 2 :] + every[: len(every) // 2])
        start = np.full((len(tiles), self._groups), np.inf, np.float32)
        np.put_along_axis(start, self._ops.get(overlap), 0, 1)
        states = self._back(weights, every, self._costs(weights, every, start), overlap)
        return np.concatenate([self._ops.get(column) for column in states], 1)

    def _overlap(self, weights: Any, turned: list[int]) -> Any:
        """The group [n, 1] in the middle of the best path through steps in another order, whatever its ends."""
        costs = self._costs(weights, turned, np.zeros((len(weights), self._groups), np.float32))
        end, half = self._ops.argmin(costs[-1])[:, None], len(turned) // 2
        return self._back(weights, turned[half:], costs[half:], end)[0] >> self._shift

    def _costs(self, weights: Any, steps: list[int], start: Tiles) -> list[Any]:
        """Half the squared error of the best ways to each group [n, groups], before every step and after the last."""
        n, costs = len(weights), [self._ops.put(start)]
        for step in steps:
            first, second = weights[:, step, :1], weights[:, step, 1:]
            own = (self._half - first * self._first - second * self._second).reshape(
                n, self._choices, -1, self._choices
            )
            ways = own + costs[-1].reshape(n, self._choices, -1, 1)
            least = self._ops.least(ways.reshape(n, self._choices, self._groups))
            costs.append(least + (first * first + second * second) / 2)
        return costs

    def _back(self, weights: Any, steps: list[int], costs: list[Any], group: Any) -> list[Any]:
        """The states [n, 1] of each step by which the best ways to groups [n, 1] came there; costs: as `_costs`."""
        states = []
        for step, cost in zip(reversed(steps), reversed(costs[:-1])):
            first, second = weights[:, step, :1], weights[:, step, 1:]
            asked = self._begins + group
            own = self._half[asked] - first * self._first[asked] - second * self._second[asked]
            best = self._ops.argmin(own + self._ops.pick(cost, asked >> self._shift))
            states.append(self._ops.pick(asked, best[:, None]))
            group = states[-1] >> self._shift
        return states[::-1]
