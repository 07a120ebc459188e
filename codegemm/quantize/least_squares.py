"""The codebooks that fit codes best: sums over vectors, which may be added and forgotten, and their solution."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from codegemm.quantize.search import Codes, Vectors

_SWEEPS = 4


@dataclass(frozen=True)
class Sums:
    """What least squares needs of vectors and their codes, all in float64.

    counts: [m, 2**b], how often each centroid is used. together: [2**b, 2**b] for codebooks c < d, how often centroid i
    of c meets centroid j of d. right: [m, 2**b, v], the sum of the vectors of each centroid.
    """

    counts: npt.NDArray[np.float64]
    together: dict[tuple[int, int], npt.NDArray[np.float64]]
    right: npt.NDArray[np.float64]

    def plus(self, older: Sums, share: float) -> Sums:
        """These and a share of older ones."""
        return Sums(
            self.counts + share * older.counts,
            {pair: table + share * older.together[pair] for pair, table in self.together.items()},
            self.right + share * older.right,
        )


def sums(vectors: Vectors, codes: Codes, weights: npt.NDArray[np.float64], centroids: int) -> Sums:
    """Sums over vectors [n, v] with codes [n, m], each counted weights [n] times.

    NumPy adds them, in their order: on a GPU the order would differ from run to run.
    """
    together = {}
    for c, d in combinations(range(codes.shape[1]), 2):
        pairs = codes[:, c].astype(np.intp) * centroids + codes[:, d]
        together[c, d] = collected(weights[:, None], pairs[:, None], centroids**2).reshape(centroids, centroids)
    return Sums(
        collected(weights[:, None], codes, centroids)[..., 0],
        together,
        collected(weights[:, None] * vectors, codes, centroids),
    )


def collected(values: npt.NDArray, codes: npt.NDArray, centroids: int) -> npt.NDArray[np.float64]:
    """The sums [m, centroids, v] of values [n, v] over the vectors whose codes [n, m] name each centroid."""
    columns = np.ascontiguousarray(values.T)
    books = [np.ascontiguousarray(book, np.intp) for book in codes.T]
    sums = [np.stack([np.bincount(book, column, centroids) for column in columns], 1) for book in books]
    return np.stack(sums)


def solve(totals: Sums, codebooks: Vectors) -> Vectors:
    """Codebooks [m, 2**b, v] nearer to the least squares of the sums; centroids without vectors stay as they are.

    One codebook after the other, given the others, some times around: each is a division, and where codes say little
    of how the codebooks share the work nothing runs away.
    """
    m = len(codebooks)
    result = codebooks.astype(np.float64)
    used = totals.counts > 0
    for _ in range(_SWEEPS if m > 1 else 1):
        for c in range(m):
            target = totals.right[c].copy()
            for d in range(m):
                if d > c:
                    target -= totals.together[c, d] @ result[d]
                elif d < c:
                    target -= totals.together[d, c].T @ result[d]
            result[c][used[c]] = target[used[c]] / totals.counts[c][used[c], None]
    return result.astype(np.float32)
