"""Centroids as the integers that `integers.hpp` multiplies, and what is expected of their rounding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.engines.cpu.rounding import error_margin
from codegemm.formats.codebook import CodebookSpec, CodebookWeight

_MOST = 32767 - 8  # each of up to 8 codebooks may round up
_PROMISED = 2e-4  # an error, of the norm of y
_USUAL = 1.5  # times what is lost of normally distributed x
_SEEN = 128  # rows and k-vectors whose weights are looked at


def fits(spec: CodebookSpec, block: int) -> bool:
    """Whether no block of so many columns has two scales."""
    return spec.groups == 1 or spec.in_features // spec.groups % block == 0


def arrays(weight: CodebookWeight, block: int) -> tuple[dict[str, npt.NDArray], dict[str, Any]]:
    """The fields of DequantArgs that `integers.hpp` reads: arrays, numbers. None of them where rows of x would have to
    be multiplied again as a rule: where sums may be much larger than they usually are."""
    spec, config = weight.spec, weight.config
    books = weight.part_codebooks.astype(np.float32)
    largest = abs(books).max((2, 3)).sum(1)
    # The least power of two by which sums of m centroids are integers of 16 bits.
    units = np.ldexp(np.float32(1), np.frexp(np.maximum(largest, 2.0**-24) / _MOST)[1]).astype(np.float32)
    integers = np.rint(books / units[:, None, None, None]).astype(np.int16)
    chunk = math.gcd(config.v, block)
    lengths = np.linalg.norm(integers.reshape(*books.shape[:3], -1, chunk).astype(np.float64), axis=-1)
    longest = float(max(lengths.max((2, 3)).sum(1).max(), 1))
    some, lost = _some(weight, books), _some(weight, books - integers * units[:, None, None, None])
    rows = (some - some.mean()).reshape(len(some), -1)  # what the mean does is seen of each row of x (put_x)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    allowed = _PROMISED**2 / error_margin(spec.out_features, rows @ rows.T)
    w_square, rounded_square = float(np.square(some).mean()), float(np.square(lost).mean())
    unit = block / math.sqrt(chunk) * longest / 2**31  # of x, in its standard deviations
    if _USUAL * (unit**2 / 12 * w_square + rounded_square) > allowed * w_square:
        return {}, {}
    squares = np.square(weight.scales.astype(np.float32)).sum(0)
    return (
        {"integers": integers, "units": units, "squares": squares},
        {
            "chunk": chunk,
            "longest": longest,
            "w_square": w_square,
            "w_mean": _mean(some),
            "rounded_square": rounded_square,
            "rounded_mean": _mean(lost),
            "allowed": allowed,
        },
    )


def _some(weight: CodebookWeight, books: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sums of the centroids that some rows and k-vectors name, without their scales [rows, k-vectors, v]."""
    spec = weight.spec
    rows = np.arange(0, spec.out_features, -(-spec.out_features // _SEEN))
    codes = weight.codes[rows, :: -(-spec.vectors // _SEEN)]
    parts = np.searchsorted(weight.part_starts, rows, side="right") - 1
    found: npt.NDArray[np.float32] = sum(books[parts[:, None], c, codes[:, :, c]] for c in range(weight.config.m))
    return found


def _mean(values: npt.NDArray[np.float32]) -> float:
    """The square of the mean over rows and k-vectors, a component on average."""
    return float(np.square(values.mean((0, 1))).mean())
