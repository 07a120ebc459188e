"""Codebooks to start from: k-means of residuals, or of parts of the vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from codegemm.formats.codebook_config import CodebookConfig
from codegemm.quantize.arithmetic import Arithmetic
from codegemm.quantize.least_squares import solve, sums
from codegemm.quantize.search import Vectors, encode

_ITERATIONS = 8  # what follows goes on from there
_SPREAD = 0.1  # of the vectors' root mean square
# k-means++ costs one pass over its sample for every centroid; above this many a random sample starts as well.
_PLUS_PLUS_LIMIT = 4096
_PLUS_PLUS_SAMPLE = 32

Weights = npt.NDArray[np.float64]


def residual(
    vectors: Vectors, weights: Weights, config: CodebookConfig, rng: np.random.Generator, ops: Arithmetic
) -> Vectors:
    """Codebooks float32 [m, 2**b, v], each by k-means of what those before it leave of vectors [n, v]."""
    books = []
    for _ in range(config.m):
        book = kmeans(vectors, weights, config.centroids, rng, ops)
        vectors = vectors - book[encode(vectors, book[None], 1, ops)[:, 0]]
        books.append(book)
    return np.stack(books)


def product(
    vectors: Vectors, weights: Weights, config: CodebookConfig, rng: np.random.Generator, ops: Arithmetic
) -> Vectors:
    """Codebooks float32 [m, 2**b, v] of which each has its own v / m coordinates, by k-means.

    Without a little noise in the other coordinates least squares would leave them zero for ever.
    """
    width = config.v // config.m
    spread = _SPREAD * float(np.sqrt(np.average((vectors.astype(np.float64) ** 2).mean(1), weights=weights)))
    books = spread * rng.standard_normal((config.m, config.centroids, config.v), np.float32)
    for c in range(config.m):
        own = slice(c * width, (c + 1) * width)
        books[c, :, own] = kmeans(np.ascontiguousarray(vectors[:, own]), weights, config.centroids, rng, ops)
    return books


def kmeans(vectors: Vectors, weights: Weights, count: int, rng: np.random.Generator, ops: Arithmetic) -> Vectors:
    """`count` centroids [count, v] of vectors [n, v], each counted weights [n] times.

    With fewer distinct vectors than centroids some repeat.
    """
    centroids = _seeds(vectors, weights, count, rng)
    for _ in range(_ITERATIONS):
        nearest = encode(vectors, centroids[None], 1, ops)
        totals = sums(vectors, nearest, weights, count)
        centroids = solve(totals, centroids[None])[0]
        # A centroid nobody chose starts again at a vector.
        unused = totals.counts[0] == 0
        centroids[unused] = vectors[rng.integers(0, len(vectors), int(unused.sum()))]
    return centroids


def _seeds(vectors: Vectors, weights: Weights, count: int, rng: np.random.Generator) -> Vectors:
    """k-means++: each is drawn by its squared distance from those before it, times its weight."""
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
