"""Joint choice of the codes of several codebooks: every pair, or a beam search; then coordinate descent."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.quantize.arithmetic import Arithmetic

Vectors = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint16]

_FEW = 16  # vectors of a block, at least


def encode(vectors: Vectors, codebooks: Vectors, beam: int, ops: Arithmetic) -> Codes:
    """Codes [n, m] whose centroids [m, 2**b, v] sum to nearly the nearest point of each vector [n, v].

    With one codebook the nearest centroid. With two and a beam of 2**b the nearest sum. Else the `beam` best sums
    survive each codebook; then each code is chosen once more given the others.
    """
    search = Search(ops.put(codebooks), beam, ops)
    out = np.empty((len(vectors), len(codebooks)), np.uint16)

    def work(begin: int) -> None:
        part = slice(begin, begin + search.step)
        out[part] = ops.get(search(ops.put(vectors[part])))

    ops.map(work, range(0, len(vectors), search.step))
    return out


class Search:
    """`encode` in the calling thread; what it needs of the codebooks is made once."""

    def __init__(self, codebooks: Any, beam: int, ops: Arithmetic) -> None:
        """codebooks: [m, 2**b, v], of the library that computes."""
        m, centroids, _ = codebooks.shape
        self._ops = ops
        self._beam = min(beam, centroids) if m > 1 else 1
        self._books = list(codebooks)
        self._halves = [(book**2).sum(1) / 2 for book in codebooks]
        # <centroid i of codebook c, centroid j of codebook d>; half of the cross product's share in |x - sum|^2
        self._products = [
            [book @ other.T if c != d else None for d, other in enumerate(self._books)]
            for c, book in enumerate(self._books)
        ]
        self.step = min(max(ops.block // centroids, _FEW), ops.vectors)  # vectors searched together

    def __call__(self, vectors: Any) -> Any:
        """Codes [n, m] of vectors [n, v], both arrays of the library that computes."""
        steps = range(0, len(vectors), self.step)
        parts = [self._codes(vectors[begin : begin + self.step]) for begin in steps]
        return parts[0] if len(parts) == 1 else self._ops.concatenate(parts)

    def _codes(self, vectors: Any) -> Any:
        # (|x - centroid|^2 - |x|^2) / 2
        alone = []
        for book, half in zip(self._books, self._halves, strict=True):
            scores = vectors @ -book.T
            scores += half
            alone.append(scores)
        return self._ops.stack(_search(self._ops, alone, self._products, self._beam), 1)


def _search(ops: Arithmetic, alone: list[Any], products: list[list[Any]], beam: int) -> list[Any]:
    """The codes [n] of each codebook."""
    m, centroids = len(alone), alone[0].shape[1]
    if m == 1:
        return [ops.argmin(alone[0])]
    if m == 2 and beam == centroids:
        return _best_pair(ops, alone[0], alone[1], products[0][1])
    codes = _beam(ops, alone, products, beam)
    for c in range(m):
        codes[c] = ops.argmin(_given(ops, alone, products, codes, c))
    return codes


def _best_pair(ops: Arithmetic, first: Any, second: Any, product: Any) -> list[Any]:
    """The codes of the least first[n, i] + second[n, j] + product[i, j]."""
    n, centroids = first.shape
    sums = ops.empty((n, centroids), first)
    best = ops.empty((centroids, n), first)
    for i in range(centroids):
        ops.add(second, product[i], out=sums)
        best[i] = ops.least(sums)
    first += best.T
    code = ops.argmin(first)
    ops.add(second, ops.take(product, code), out=sums)
    return [code, ops.argmin(sums)]


def _beam(ops: Arithmetic, alone: list[Any], products: list[list[Any]], beam: int) -> list[Any]:
    """The best of the sums that survive, codebook by codebook."""
    centroids = alone[0].shape[1]
    best = ops.smallest(alone[0], beam)
    codes, scores = [best], ops.pick(alone[0], best)  # [n, survivors], the codes for each codebook that was searched
    for c in range(1, len(alone) - 1):
        extended = ops.empty((*scores.shape, centroids), scores)  # scores of the survivors with each of the next codes
        for t in range(scores.shape[1]):
            total = _given(ops, alone, products, [code[:, t] for code in codes], c)
            ops.add(total, scores[:, t : t + 1], out=extended[:, t])
        extended = extended.reshape(len(scores), -1)
        best = ops.smallest(extended, beam)
        scores = ops.pick(extended, best)
        codes = [ops.pick(code, best // centroids) for code in codes] + [best % centroids]
    last = ops.empty(best.shape, best)
    for t in range(best.shape[1]):  # the best end of each survivor: less to hold than all ends of all
        total = _given(ops, alone, products, [code[:, t] for code in codes], len(codes))
        end = ops.argmin(total)
        last[:, t] = end
        scores[:, t] += ops.pick(total, end[:, None])[:, 0]
    winner = ops.argmin(scores)[:, None]
    return [ops.pick(code, winner)[:, 0] for code in [*codes, last]]


def _given(ops: Arithmetic, alone: list[Any], products: list[list[Any]], codes: list[Any], c: int) -> Any:
    """Scores [n, 2**b] of codebook c's centroids, given the codes of the others, as far as they are known."""
    parts = (ops.take(products[d][c], code) for d, code in enumerate(codes) if d != c)
    total = next(parts)
    total += alone[c]
    for part in parts:
        total += part
    return total
