"""g @ W on a GPU, the gradient of x @ W^T: columns of W, got by products with rows of the identity, by cuBLAS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from codegemm.devices import beside
from codegemm.engines.cuda import gemm

SLICE_BYTES = 64 << 20  # of columns at a time


def multiply(g: Any, times: Callable[[Any], Any], out: Any) -> None:
    """out = g @ W for g [n, M] and out [n, K] in float16, bfloat16 or float32.

    times: x [rows, K] -> x @ W^T [rows, M], in x's dtype. Whatever the weight's format, its kernels rebuild it so.
    """
    import cupy

    (_, m), k = g.shape, out.shape[1]
    step = max(1, SLICE_BYTES // (g.dtype.itemsize * max(m, k)))
    with beside(g):
        for first in range(0, k, step):
            places = np.arange(min(step, k - first))
            identity = cupy.zeros((len(places), k), g.dtype)
            identity[places, first + places] = 1
            gemm.multiply(g, times(identity), out, first)
