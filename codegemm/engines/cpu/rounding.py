"""What rounding is expected to lose of a product, and how far errors may be beyond that."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.formats.codebook import CodebookWeight

_SEEN, _LEAST, _MOST = 1 << 17, 16, 128  # k-vectors that are looked at, and rows


def error_margin(sizes: npt.NDArray[np.floating], alike: npt.NDArray[np.floating], deviations: float = 5.33) -> float:
    """How many times what is expected the square of a product's error may be, but for one time in ten million.

    sizes: [M], what is expected of the square of each row of W, in any unit. alike: [some, some], how far the errors of
    two rows are the same, 0 to 1 (or -1), for some that stand for all. deviations: how many standard ones a normally
    distributed number is away from its mean as seldom.

    Along the eigenvectors of this matrix errors are independent. What adds up along the first one is one normally
    distributed number, however many rows there are; of the many others' squares the sum is nearly one.
    """
    rows, some = len(sizes), len(alike)
    others = max(some - 1, 1)
    mean = float(sizes.mean())
    own = sizes / mean if mean > 0 else np.ones(rows)
    # As all rows have them: the first eigenvalue and the squares of all, of eigenvalues that add up to 1.
    first = own.max() / rows + (1 - 1 / rows) * max(np.linalg.eigvalsh(alike)[-1] - 1, 0) / others
    squares = np.square(own).mean() / rows + (1 - 1 / rows) * max(np.square(alike).sum() - some, 0) / (some * others)
    first, squares = min(first, 1.0), min(squares, 1.0)
    return float(first * deviations**2 + 1 - first + deviations * np.sqrt(2 * max(squares - first**2, 0)))


def row_sizes(weight: CodebookWeight) -> npt.NDArray[np.float64]:
    """[M]: the squares of a row's scales, in whose proportion those of its errors are."""
    return np.square(weight.scales.astype(np.float64)).sum(1)


def rows_of(weight: CodebookWeight) -> npt.NDArray[np.intp]:
    """Rows that stand for all."""
    count = min(max(_SEEN // weight.spec.vectors, _LEAST), _MOST)
    return np.arange(0, weight.spec.out_features, -(-weight.spec.out_features // count))


def parts_of(weight: CodebookWeight, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The part of each row."""
    return np.searchsorted(weight.part_starts, rows, side="right") - 1


def sums(weight: CodebookWeight, *books: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """What these rows have of codebooks [parts, m, centroids, v], without their scales [rows, groups, k-vectors of a
    group, v]; of each such codebooks."""
    rows, spec = rows_of(weight), weight.spec
    codes = weight.codes[rows]  # made anew where the weight has let go of them
    parts = parts_of(weight, rows)[:, None]
    added = [sum(each[parts, c, codes[:, :, c]] for c in range(spec.config.m)) for each in books]
    return [each.reshape(len(rows), spec.groups, spec.group_vectors, -1) for each in added]


def expected(
    weight: CodebookWeight, kept: npt.NDArray[np.float32], lost: npt.NDArray[np.float32], promised: float
) -> tuple[dict[str, npt.NDArray], dict[str, Any]]:
    """The fields of DequantArgs by which panels.hpp tells rows of x that are to be mended: arrays, numbers.

    kept, lost: of some rows, as `sums` has them, W and what its rounding takes. promised: an error, of the norm of y.
    """
    rows = (kept - kept.mean()).reshape(len(kept), -1)  # what the mean does is seen of each row of x (put_x)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    numbers = {"allowed": promised**2 / error_margin(row_sizes(weight), rows @ rows.T)}
    for name, values in (("w", kept), ("rounded", lost)):
        added, squares = values.sum(2), np.square(values).sum(2)
        groups, each = values.shape[1:3]
        numbers[f"{name}_square"] = float(squares.mean()) / each
        numbers[f"{name}_group"] = _alike(added, squares, each)
        numbers[f"{name}_row"] = _alike(added.sum(1), squares.sum(1), groups * each)
    return {"squares": np.square(weight.scales.astype(np.float32)).sum(0)}, numbers


def _alike(added: npt.NDArray[np.float32], squares: npt.NDArray[np.float32], count: int) -> float:
    """The mean product of two of `count` numbers, of which their sums and sums of their squares are told; 0 where it is
    negative."""
    pairs = count * (count - 1)
    return max(float((np.square(added) - squares).mean()), 0.0) / pairs if pairs else 0.0
