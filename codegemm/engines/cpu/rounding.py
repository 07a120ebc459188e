"""How far rounding errors may be beyond what is expected of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def error_margin(rows: int, alike: npt.NDArray[np.floating], deviations: float = 5.33) -> float:
    """How many times what is expected the square of a product's error may be, but for one time in ten million.

    rows: of W. alike: [some, some], how far the errors of two rows of W are the same, 0 to 1 (or -1). deviations: how
    many standard ones a normally distributed number is away from its mean as seldom.

    Along the eigenvectors of this matrix errors are independent. What adds up along the first one is one normally
    distributed number, however many rows there are; of the many others' squares the sum is nearly one.
    """
    some = len(alike)
    others = max(some - 1, 1)
    # As all rows have them: the first eigenvalue and the squares of all, of eigenvalues that add up to 1.
    first = 1 / rows + (1 - 1 / rows) * max(np.linalg.eigvalsh(alike)[-1] - 1, 0) / others
    squares = 1 / rows + (1 - 1 / rows) * max(np.square(alike).sum() - some, 0) / (some * others)
    return float(first * deviations**2 + 1 - first + deviations * np.sqrt(2 * max(squares - first**2, 0)))
