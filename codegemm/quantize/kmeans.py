"""k-means with a k-means++ start, for codebooks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from codegemm.quantize.arithmetic import Arithmetic
from codegemm.quantize.least_squares import solve, sums
from codegemm.quantize.search import Vectors, encode

# k-means++ costs one pass over its sample for every centroid; above this many a random sample starts as well.
_PLUS_PLUS_LIMIT = 4096
_PLUS_PLUS_SAMPLE = 32


def kmeans(
    vectors: Vectors,
    weights: npt.NDArray[np.float64],
    count: int,
    iterations: int,
    rng: np.random.Generator,
    arithmetic: Arithmetic,
) -> Vectors:
    """`count` centroids [count, v] of vectors [n, v], each counted weights [n] times.

    With fewer distinct vectors than centroids some repeat.
    """
    centroids = start(vectors, weights, count, rng)
    for _ in range(iterations):
        nearest = encode(vectors, centroids[None], 1, arithmetic)
        totals = sums(vectors, nearest, weights, count)
        centroids = solve(totals, centroids[None])[0]
        # A centroid nobody chose starts again at a vector.
        unused = totals.counts[0] == 0
        centroids[unused] = vectors[rng.integers(0, len(vectors), int(unused.sum()))]
    return centroids


def start(vectors: Vectors, weights: npt.NDArray[np.float64], count: int, rng: np.random.Generator) -> Vectors:
    """k-means++ seeds: each drawn by its squared distance from those before it, times its weight."""
    if count > _PLUS_PLUS_LIMIT:
        return vectors[rng.choice(len(vectors), count, replace=len(vectors) < count)].copy()
    few = min(len(vectors), count * _PLUS_PLUS_SAMPLE)
    chosen = rng.choice(len(vectors), few, replace=False)
    sample, weight = vectors[chosen], weights[chosen]
    seeds = np.empty((count, vectors.shape[1]), np.float32)
    distance = np.full(few, np.inf)
    index = int(rng.integers(few))
    for i in range(count):
        seeds[i] = sample[index]
        distance = np.minimum(distance, ((sample - seeds[i]) ** 2).sum(1))
        cumulative = np.cumsum(distance * weight)
        if cumulative[-1] > 0:
            index = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
            index = min(index, few - 1)
        else:
            index = int(rng.integers(few))
    return seeds
