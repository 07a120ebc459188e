"""The tables of pairs that `qtip` is quantised with, fitted to normal numbers: `python -m benchmarks.quantize.tables`
writes them (minutes)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from codegemm.formats import trellis
from codegemm.formats.incoherent import BITS
from codegemm.quantize.arithmetic import Arithmetic, find
from codegemm.quantize.qtip import TABLES
from codegemm.quantize.start import kmeans
from codegemm.quantize.viterbi import Search

_POINTS = 1 << 17  # of k-means
_SPREAD = {2: 1.0, 3: 1.1, 4: 1.2}  # root mean squares of a table to start with, the best ones
_TILES = 2048  # of a round
_ROUNDS = 32


def main() -> None:
    """Write them, float16 [3, 512, 2]."""
    ops, tables = find("numpy", 0), []
    for bits in BITS:
        table = by_kmeans(bits, ops)
        for number in range(_ROUNDS):
            table, error = refitted(table, tiles(number), bits, ops)
            print(f"{bits} bits, round {number}: mean squared error {error:.5f}", flush=True)
        tables.append(table.astype(np.float16))
    np.save(TABLES, np.stack(tables))


def tiles(seed: int, count: int = _TILES) -> npt.NDArray[np.float32]:
    """Normal numbers [count, 128, 2]."""
    return np.random.default_rng(seed).standard_normal((count, trellis.STEPS, trellis.PAIR), np.float32)


def by_kmeans(bits: int, ops: Arithmetic) -> npt.NDArray[np.float32]:
    """A table [512, 2] for pairs of normal numbers, the first one's sign aside: centroids, all times one factor."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((_POINTS, trellis.PAIR), np.float32)
    points[:, 0] = np.abs(points[:, 0])
    table = kmeans(points, np.ones(len(points)), trellis.TABLE, rng, ops)
    return table * (_SPREAD[bits] / np.sqrt(np.square(table).mean()))


def refitted(
    table: npt.NDArray, weights: npt.NDArray[np.float32], bits: int, ops: Arithmetic
) -> tuple[npt.NDArray[np.float32], float]:
    """The table whose every pair is the mean of the weights [tiles, 128, 2] that a table's paths give it, and the mean
    squared error of those paths with the old one. A pair that no path names stays as it is."""
    search = Search(table, bits, ops)
    states = search(weights)
    error = float(np.square(search.pairs[states] - weights, dtype=np.float64).mean())
    h = trellis.hashes(states).ravel()
    index, pairs = h >> 6 & trellis.TABLE - 1, weights.reshape(-1, trellis.PAIR).astype(np.float64)
    pairs[h >= 1 << 15, 0] *= -1
    sums = np.stack([np.bincount(index, column, trellis.TABLE) for column in pairs.T], 1)
    counts = np.bincount(index, minlength=trellis.TABLE)[:, None]
    return np.where(counts > 0, sums / np.maximum(counts, 1), table).astype(np.float32), error


if __name__ == "__main__":
    main()
