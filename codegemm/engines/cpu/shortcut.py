"""The short way of a product: x and out that a kernel takes as they are, nothing copied, nothing decided twice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from codegemm.arrays import float_dtype, written
from codegemm.engines.cpu.kernel import CpuKernel
from codegemm.engines.cpu.library import address
from codegemm.kernel import Product
from codegemm.operands import rows_for, takes_kernels, transforms

_MAX_SEEN = 64


class Shortcut:
    """Finds in some microseconds what a plan runs for arrays that need no copy, where that is a call of compiled code.

    product: of the most rows that it lets pass, in x's dtype.
    """

    def __init__(self, kernel: CpuKernel, prepared: Any, product: Product) -> None:
        self._kernel, self._prepared, self._product = kernel, prepared, product
        self._bound: dict[Any, Callable[..., None] | None] = {}

    def find(self, x: Any, out: Any, stream: Any) -> tuple[Any, int, int, Any] | None:
        """(what to run, the addresses of x and out, the stream), or None where the long way must be gone."""
        if type(x) is np.ndarray and type(out) is np.ndarray:
            if not (x.flags.c_contiguous and x.flags.aligned and out.flags.writeable and takes_kernels(out, x)):
                return None
            bound = self._find(x.shape, out.shape, x.dtype, out.dtype)
            return None if bound is None else (bound, address(x), address(out), stream)
        torch = sys.modules.get("torch")
        if torch is None or type(x) is not torch.Tensor or type(out) is not torch.Tensor:
            return None
        if not (x.is_cpu and out.is_cpu and x.is_contiguous() and out.is_contiguous()) or x.is_neg() or out.is_neg():
            return None
        if ((x.requires_grad or out.requires_grad) and torch.is_grad_enabled()) or transforms(torch):
            return None
        bound = self._find(x.shape, out.shape, x.dtype, out.dtype)
        begin, out_begin = x.data_ptr(), out.data_ptr()
        if bound is None or (begin < out_begin + out.nbytes and out_begin < begin + x.nbytes):
            return None
        written(out)
        return bound, begin, out_begin, stream

    def _find(self, *key: Any) -> Callable[..., None] | None:
        """For x's and out's shapes and dtypes."""
        if key not in self._bound:
            if len(self._bound) >= _MAX_SEEN:
                self._bound.clear()
            self._bound[key] = self._bind(*key)
        return self._bound[key]

    def _bind(self, shape: tuple[int, ...], out_shape: tuple[int, ...], *dtypes: Any) -> Callable[..., None] | None:
        if not {str(dtype).removeprefix("torch.") for dtype in dtypes} <= {self._product.dtype.name, "float32"}:
            return None
        dtype, out_dtype = map(float_dtype, dtypes)
        n = rows_for(shape, out_shape, dtype, out_dtype, self._product.spec.shape)
        if not 0 < n <= self._product.n or dtype != self._product.dtype:
            return None
        return self._kernel.bound(self._prepared, replace(self._product, n=n, out_dtype=out_dtype))
