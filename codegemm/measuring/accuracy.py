"""Random inputs, and how far products of theirs are from the right ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from codegemm.engines.reference import product
from codegemm.formats.weight import Weight


def inputs(columns: int, rows: int, dtype: np.dtype, seed: int = 0) -> npt.NDArray:
    """Standard normal x [rows, columns]."""
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32).astype(dtype)


def exact(weight: Weight, x: npt.NDArray) -> npt.NDArray[np.float64]:
    """x [n, in_features] @ W^T in float64, [n, out_features]."""
    return product(weight.to("cpu"), x)


def relative_error(y: npt.NDArray, truth: npt.NDArray) -> float:
    """||y - truth|| / ||truth||."""
    norm = float(np.linalg.norm(truth))
    return float(np.linalg.norm(y.astype(np.float64) - truth)) / norm if norm else float(np.linalg.norm(y))
