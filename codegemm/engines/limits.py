"""Sizes of products that compiled kernels count: their integers have 32 bits."""

from __future__ import annotations

from codegemm.kernel import Product

ROWS = 2**31 - 2**16  # of x, or of W: loops step beyond the last one
COLUMNS = 2**27 - 1  # a row's codes are up to eight of two bytes for each
PLACES = 2**32  # that a kernel numbers without a sign


def beyond(product: Product) -> str | None:
    """Why a product is too large for a compiled kernel, or None."""
    rows, columns = product.spec.shape
    for name, count, most in (("n", product.n, ROWS), ("out_features", rows, ROWS), ("in_features", columns, COLUMNS)):
        if count > most:
            return _refusal(f"{name}={count}", most)
    return None


def too_many(what: str, count: int, most: int = PLACES) -> str | None:
    """The same for a kernel that numbers so many places of something."""
    return _refusal(f"{count} {what}", most) if count > most else None


def _refusal(count: str, most: int) -> str:
    return f"{count}: up to {most}, for its integers have 32 bits"
