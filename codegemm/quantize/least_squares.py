"""The codebooks that fit codes best: sums over vectors, which may be added and forgotten, and their solution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codegemm.quantize.search import Codes, Vectors

_SWEEPS = 4


@dataclass(frozen=True)
class Sums:
    """What least squares needs of vectors and their codes, all in float64.

    together: [m, m, 2**b, 2**b], how often centroid i of codebook c meets centroid j of codebook d; for c = d only
        counts [m, 2**b] are kept, since that part is diagonal. One codebook has none.
    right: [m, 2**b, v], the sum of the vectors that each centroid has.
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
    m = codes.shape[1]
    index = np.ascontiguousarray(codes.T, dtype=np.intp)
    columns = [weights * column for column in vectors.T]
    return Sums(
        np.stack([np.bincount(index[c], weights, minlength=centroids) for c in range(m)]),
        {
            (c, d): np.bincount(index[c] * centroids + index[d], weights, minlength=centroids**2).reshape(centroids, -1)
            for c in range(m)
            for d in range(c + 1, m)
        },
        np.stack(
            [np.stack([np.bincount(index[c], column, minlength=centroids) for column in columns], 1) for c in range(m)]
        ),
    )


def solve(found: Sums, codebooks: Vectors) -> Vectors:
    """Codebooks [m, 2**b, v] nearer to the least squares of the sums; centroids without vectors stay as they are.

    One codebook after the other, given the others, some times around: each is a division, and where codes say little
    of how the codebooks share the work nothing runs away.
    """
    m = len(codebooks)
    result = codebooks.astype(np.float64)
    used = found.counts > 0
    for _ in range(_SWEEPS if m > 1 else 1):
        for c in range(m):
            target = found.right[c].copy()
            for d in range(m):
                if d > c:
                    target -= found.together[c, d] @ result[d]
                elif d < c:
                    target -= found.together[d, c].T @ result[d]
            result[c][used[c]] = target[used[c]] / found.counts[c][used[c], None]
    return result.astype(np.float32)
