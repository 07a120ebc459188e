"""The short way of a product: x and out that a kernel takes as they are, nothing copied, nothing decided twice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from codegemm.arrays import from_torch, written
from codegemm.operands import takes_kernels, transforms


class Shortcut:
    """Finds in some microseconds what a plan runs for arrays that need no copy.

    run: for all of them. n, dtype: the most rows of x and their dtype that it lets pass.
    """

    def __init__(self, shape: tuple[int, int], run: Callable[..., None], n: int, dtype: np.dtype) -> None:
        self._run, (self._rows, self._columns) = run, shape
        self._most, self._dtype = n * self._columns, dtype
        self._out_dtypes = (dtype, np.dtype(np.float32)) if dtype.itemsize == 2 else (dtype,)

    def find(self, x: Any, out: Any, stream: Any) -> tuple[Any, Any, Any, Any] | None:
        """(what to run, x [rows, K], out [rows, M], the stream), or None where the long way must be gone."""
        if type(x) is not np.ndarray or type(out) is not np.ndarray:
            torch = sys.modules.get("torch")
            if torch is None or type(x) is not torch.Tensor or type(out) is not torch.Tensor:
                return None
            if not (x.is_cpu and out.is_cpu and x.is_contiguous() and out.is_contiguous()):
                return None
            if ((x.requires_grad or out.requires_grad) and torch.is_grad_enabled()) or transforms(torch):
                return None
            written(out)
            x, out = from_torch(x, "x"), from_torch(out, "out")
        if x.dtype != self._dtype or out.dtype not in self._out_dtypes or not 0 < x.size <= self._most:
            return None
        if x.shape[-1] != self._columns or out.shape != (*x.shape[:-1], self._rows):
            return None
        if not (x.flags.c_contiguous and x.flags.aligned and out.flags.writeable and takes_kernels(out, x)):
            return None
        if x.ndim != 2:
            x, out = x.reshape(-1, self._columns), out.reshape(-1, self._rows)
        return self._run, x, out, stream
