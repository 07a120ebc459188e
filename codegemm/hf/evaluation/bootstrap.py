"""How far a result may be off because the text is a sample: the bootstrap, of whole windows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RESAMPLES, LEVEL = 2000, 0.95
_BLOCK = 1 << 22  # counts that are drawn at a time


def resample(sums: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64] | None:
    """Totals [RESAMPLES, k] of as many windows as there are, drawn with repetition; None of fewer than two.

    sums: [windows, k]. All k are of the same draws, so that what is computed of several is paired.
    """
    count = len(sums)
    if count < 2:
        return None
    rng, chances, block = np.random.default_rng(seed), np.full(count, 1 / count), max(1, _BLOCK // count)
    sizes = [min(block, RESAMPLES - done) for done in range(0, RESAMPLES, block)]
    return np.concatenate([rng.multinomial(count, chances, size) @ sums for size in sizes])


def interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The middle `LEVEL` of what was found of each resample."""
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(values, [outside, 1 - outside])
    return float(low), float(high)
