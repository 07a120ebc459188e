"""The short way of a product: x and out that a kernel takes as they are, nothing copied, nothing decided twice."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from codegemm.arrays import FLOATS, float_dtype, view, written
from codegemm.devices import Device, Stream
from codegemm.operands import rows_for, watch

_MAX_SEEN = 64


class Entry(NamedTuple):
    """What is known of one combination of shapes and dtypes. run: what the owner runs for it."""

    run: Any
    columns: int
    flat: bool  # x has two axes
    x_bytes: int
    out_bytes: int


class Shortcut:
    """Finds in about a microsecond what an owner (a plan, a weight) runs for arrays of these shapes and dtypes.

    bind: called once for a number of rows, x's and out's dtype.
    n, dtype: the most rows of x and their dtype that it lets pass; by default any that kernels may take.
    """

    def __init__(
        self,
        device: Device,
        shape: tuple[int, int],
        bind: Callable[[int, np.dtype, np.dtype], Any],
        n: float = math.inf,
        dtype: np.dtype | None = None,
    ) -> None:
        import cupy

        self._ndarray = cupy.ndarray
        self._current = cupy.cuda.runtime.getDevice
        self._number, self._shape, self._bind, self._n = device.number, shape, bind, n
        self._dtypes = tuple(float_dtype(name) for name in FLOATS) if dtype is None else (dtype,)
        self._entries: dict[Any, Entry] = {}
        self._views: dict[Any, Any] = {}
        self._streams: dict[int, Stream] = {}

    def find(self, x: Any, out: Any, stream: Any) -> tuple[Any, Any, Any, Any] | None:
        """(what to run, x [rows, K], out, the stream), or None where the long way must be gone."""
        if type(x) is not self._ndarray or type(out) is not self._ndarray:
            torch = sys.modules.get("torch")
            if torch is None or type(x) is not torch.Tensor or type(out) is not torch.Tensor:
                return None
            if not (x.is_cuda and out.is_cuda and x.device.index == self._number):
                return None
            if ((x.requires_grad or out.requires_grad) and torch.is_grad_enabled()) or watch(torch)():
                return None
            if stream is None:
                pointer = torch.cuda.current_stream(x.device).cuda_stream
                stream = self._streams.get(pointer) or self._streams.setdefault(pointer, Stream(pointer))
            written(out)
            x, out = self._view(x), self._view(out)
        x_data, out_data = x.data, out.data
        if not x_data.device_id == out_data.device_id == self._number == self._current():
            return None
        key = (x.shape, out.shape, x.dtype, out.dtype)
        entry = self._entries.get(key) or self._enter(*key)
        # `_c_contiguous` costs an eighth of `flags.c_contiguous`.
        if entry is None or not x._c_contiguous or not out._c_contiguous:
            return None
        run, columns, flat, x_bytes, out_bytes = entry
        begin, out_begin = x_data.ptr, out_data.ptr
        if begin & 15 or (begin < out_begin + out_bytes and out_begin < begin + x_bytes):
            return None
        return run, x if flat else x.reshape(-1, columns), out, stream

    def _enter(self, shape: tuple[int, ...], out_shape: tuple[int, ...], dtype: Any, out_dtype: Any) -> Entry | None:
        rows = rows_for(shape, out_shape, dtype, out_dtype, self._shape)
        if not 0 < rows <= self._n or dtype not in self._dtypes:
            return None
        if len(self._entries) >= _MAX_SEEN:
            self._entries.clear()
        run = self._bind(rows, dtype, out_dtype)
        out_bytes = rows * self._shape[0] * out_dtype.itemsize
        entry = Entry(run, shape[-1], len(shape) == 2, math.prod(shape) * dtype.itemsize, out_bytes)
        self._entries[shape, out_shape, dtype, out_dtype] = entry
        return entry

    def _view(self, tensor: Any) -> Any:
        """Serving uses the same buffers again and again; their views are kept."""
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        array = self._views.get(key)
        if array is None:
            if len(self._views) >= _MAX_SEEN:
                self._views.clear()
            array = self._views[key] = view(tensor)
        return array
