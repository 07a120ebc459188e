"""Codebooks to start from: of residuals, and of parts of the vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from codegemm.config import CodebookConfig
from codegemm.quantize.arithmetic import Arithmetic
from codegemm.quantize.kmeans import kmeans
from codegemm.quantize.search import Vectors, encode

_ITERATIONS = 8  # what follows goes on from there
_SPREAD = 0.1  # of the vectors' root mean square


def residual(
    vectors: Vectors,
    weights: npt.NDArray[np.float64],
    config: CodebookConfig,
    rng: np.random.Generator,
    arithmetic: Arithmetic,
) -> Vectors:
    """Codebooks float32 [m, 2**b, v], each by k-means of what those before it leave of vectors [n, v]."""
    books = []
    for _ in range(config.m):
        book = kmeans(vectors, weights, config.centroids, _ITERATIONS, rng, arithmetic)
        vectors = vectors - book[encode(vectors, book[None], 1, arithmetic)[:, 0]]
        books.append(book)
    return np.stack(books)


def product(
    vectors: Vectors,
    weights: npt.NDArray[np.float64],
    config: CodebookConfig,
    rng: np.random.Generator,
    arithmetic: Arithmetic,
) -> Vectors:
    """Codebooks float32 [m, 2**b, v] of which each has its own v / m coordinates, by k-means.

    Without a little noise in the other coordinates least squares would leave them zero for ever.
    """
    width = config.v // config.m
    spread = _SPREAD * float(np.sqrt(np.average((vectors.astype(np.float64) ** 2).mean(1), weights=weights)))
    books = spread * rng.standard_normal((config.m, config.centroids, config.v), np.float32)
    for c in range(config.m):
        part = np.ascontiguousarray(vectors[:, c * width : (c + 1) * width])
        book = kmeans(part, weights, config.centroids, _ITERATIONS, rng, arithmetic)
        books[c, :, c * width : (c + 1) * width] = book
    return books
