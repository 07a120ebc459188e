"""Joint choice of the codes of several codebooks: beam search, then coordinate descent."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint16]

_BLOCK = 1 << 21  # candidate scores held at a time by a thread


def encode(
    vectors: Vectors,
    codebooks: Vectors,
    beam: int,
    sweeps: int = 1,
    done: Callable[[int], None] | None = None,
) -> Codes:
    """Codes [n, m] whose centroids [m, 2**b, v] sum to nearly the nearest point of each vector [n, v].

    With one codebook the nearest centroid. With more, the `beam` best sums survive each codebook; then each code is
    chosen once more given the others, `sweeps` times. `done` hears how many vectors are finished.
    """
    m, centroids, _ = codebooks.shape
    gram = cross_products(codebooks)
    out = np.empty((len(vectors), m), np.uint16)
    step = max(1, _BLOCK // (centroids * (beam if m > 1 else 1)))

    def work(begin: int) -> None:
        block = vectors[begin : begin + step]
        out[begin : begin + step] = _encode_block(block, codebooks, gram, beam, sweeps)
        if done:
            done(len(block))

    # The threads share NumPy's time outside the interpreter's lock; blocks don't depend on each other.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, range(0, len(vectors), step)))
    return out


def decode(codes: Codes, codebooks: Vectors) -> Vectors:
    """The sums [n, v] that codes [n, m] name."""
    total = codebooks[0][codes[:, 0]]
    for c in range(1, len(codebooks)):
        total += codebooks[c][codes[:, c]]
    return total


def cross_products(codebooks: Vectors) -> Vectors:
    """2 * <centroid i of codebook c, centroid j of codebook d>, [m, m, 2**b, 2**b]; empty for one codebook."""
    if len(codebooks) == 1:
        return np.empty((1, 1, 0, 0), np.float32)
    return 2 * np.einsum("civ,djv->cdij", codebooks, codebooks, optimize=True)


def _encode_block(block: Vectors, codebooks: Vectors, gram: Vectors, beam: int, sweeps: int) -> Codes:
    m, centroids, _ = codebooks.shape
    n = len(block)
    # |x - sum|^2 - |x|^2 = sum of alone[c] + cross products of every pair of codebooks
    alone = [(book**2).sum(1) - 2 * (block @ book.T) for book in codebooks]
    if m == 1:
        return alone[0].argmin(1)[:, None].astype(np.uint16)

    keep = min(beam, centroids)
    codes = _smallest(alone[0], keep)[..., None]
    scores = np.take_along_axis(alone[0], codes[..., 0], 1)
    for c in range(1, m):
        candidates = scores[..., None] + alone[c][:, None]
        for d in range(c):
            candidates += gram[d, c][codes[..., d]]
        flat = candidates.reshape(n, -1)
        keep = min(beam, flat.shape[1]) if c < m - 1 else 1
        best = _smallest(flat, keep)
        parent, chosen = np.divmod(best, centroids)
        codes = np.concatenate([np.take_along_axis(codes, parent[..., None], 1), chosen[..., None]], -1)
        scores = np.take_along_axis(flat, best, 1)
    result = codes[:, 0]

    for _ in range(sweeps):
        for c in range(m):
            given = alone[c].copy()
            for d in range(m):
                if d != c:
                    given += gram[d, c][result[:, d]]
            result[:, c] = given.argmin(1)
    return result.astype(np.uint16)


def _smallest(scores: npt.NDArray, count: int) -> npt.NDArray[np.intp]:
    """Indices [n, count] of the smallest scores of each row."""
    if count == 1:
        return scores.argmin(1)[:, None]
    if count == scores.shape[1]:
        return np.broadcast_to(np.arange(count), scores.shape)
    return np.argpartition(scores, count, axis=1)[:, :count]
