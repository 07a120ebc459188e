"""k-means with a k-means++ start, for codebooks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

# k-means++ costs one pass over its sample for every centroid; above this many a random sample starts as well.
_PLUS_PLUS_LIMIT = 4096
_PLUS_PLUS_SAMPLE = 32
_BLOCK = 1 << 22  # distances held at a time


def kmeans(vectors: Vectors, count: int, iterations: int, rng: np.random.Generator) -> Vectors:
    """`count` centroids [count, v] of vectors [n, v]; with fewer distinct vectors than centroids some repeat."""
    centroids = start(vectors, count, rng)
    for _ in range(iterations):
        nearest = assign(vectors, centroids)
        sizes = np.bincount(nearest, minlength=count)
        sums = np.stack([np.bincount(nearest, column, minlength=count) for column in vectors.T], axis=1)
        used = sizes > 0
        centroids[used] = sums[used] / sizes[used, None]
        # A centroid nobody chose starts again at a vector.
        centroids[~used] = vectors[rng.integers(0, len(vectors), int((~used).sum()))]
    return centroids


def start(vectors: Vectors, count: int, rng: np.random.Generator) -> Vectors:
    """k-means++ seeds: each drawn with a probability proportional to its squared distance from those before it."""
    if count > _PLUS_PLUS_LIMIT:
        return vectors[rng.choice(len(vectors), count, replace=len(vectors) < count)].copy()
    few = min(len(vectors), count * _PLUS_PLUS_SAMPLE)
    sample = vectors[rng.choice(len(vectors), few, replace=False)]
    seeds = np.empty((count, vectors.shape[1]), np.float32)
    distance = np.full(few, np.inf)
    index = int(rng.integers(few))
    for i in range(count):
        seeds[i] = sample[index]
        distance = np.minimum(distance, ((sample - seeds[i]) ** 2).sum(1))
        cumulative = np.cumsum(distance)
        if cumulative[-1] > 0:
            index = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
            index = min(index, few - 1)
        else:
            index = int(rng.integers(few))
    return seeds


def assign(vectors: Vectors, centroids: Vectors) -> npt.NDArray[np.intp]:
    """The index of each vector's nearest centroid."""
    nearest = np.empty(len(vectors), np.intp)
    step = max(1, _BLOCK // len(centroids))
    half_norms = (centroids**2).sum(1) / 2
    for begin in range(0, len(vectors), step):
        block = vectors[begin : begin + step]
        nearest[begin : begin + step] = (half_norms - block @ centroids.T).argmin(1)
    return nearest
