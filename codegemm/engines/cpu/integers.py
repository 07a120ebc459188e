"""Centroids as the integers that `integers.hpp` multiplies, and what is expected of their rounding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.engines.cpu import rounding
from codegemm.formats.codebook import CodebookSpec, CodebookWeight

_MOST = 32767 - 8  # each of up to 8 codebooks may round up
_PROMISED = 2e-4  # an error, of the norm of y
_USUAL = 1.5  # times what is lost of normally distributed x


def fits(spec: CodebookSpec, block: int) -> bool:
    """Whether no block of so many columns has two scales."""
    return spec.groups == 1 or spec.in_features // spec.groups % block == 0


def arrays(weight: CodebookWeight, block: int) -> tuple[dict[str, npt.NDArray], dict[str, Any]]:
    """The fields of DequantArgs that `integers.hpp` reads and those of `rounding.expected`: arrays, numbers. None of
    them where rows of x would have to be multiplied again as a rule: where sums may be much larger than they usually
    are."""
    config = weight.config
    books = weight.part_codebooks.astype(np.float32)
    largest = abs(books).max((2, 3)).sum(1)
    # The least power of two by which sums of m centroids are integers of 16 bits.
    units = np.ldexp(np.float32(1), np.frexp(np.maximum(largest, 2.0**-24) / _MOST)[1]).astype(np.float32)
    integers = np.rint(books / units[:, None, None, None]).astype(np.int16)
    chunk = math.gcd(config.v, block)
    lengths = np.linalg.norm(integers.reshape(*books.shape[:3], -1, chunk).astype(np.float64), axis=-1)
    longest = float(max(lengths.max((2, 3)).sum(1).max(), 1))
    kept, lost = rounding.sums(weight, books, books - integers * units[:, None, None, None])
    squares, told = rounding.expected(weight, kept, lost, _PROMISED)
    unit = block / math.sqrt(chunk) * longest / 2**31  # of x, in its standard deviations
    if _USUAL * (unit**2 / 12 * told["w_square"] + told["rounded_square"]) > told["allowed"] * told["w_square"]:
        return {}, {}
    return {"integers": integers, "units": units} | squares, {"chunk": chunk, "longest": longest} | told
