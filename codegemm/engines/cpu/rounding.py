"""How far rounding errors may be beyond what is expected of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_DEVIATIONS = 3.72  # standard ones, beyond which a normally distributed number is one time in 10,000


def error_margin(rows: int, alike: npt.NDArray[np.floating]) -> float:
    """How many times what is expected the square of a product's error may be, but for one time in 10,000.

    rows: of W. alike: [some, some], how far the errors of two rows of W are the same, 0 to 1 (or -1). Errors that are
    independent have a sum of squares over the rows that is chi-square distributed, with as many degrees of freedom as
    there are rows, or fewer where these have the same errors: of a quantile of it, by Wilson and Hilferty's
    approximation.
    """
    others = max(alike.size - len(alike), 1)
    spread = 2 / 9 * (1 / rows + max(float((alike**2).sum()) - len(alike), 0) / others)
    return float((1 - spread + _DEVIATIONS * np.sqrt(spread)) ** 3)
