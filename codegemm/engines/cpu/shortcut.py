"""The short way of a product: x and out that compiled code takes as they are, nothing copied, nothing decided twice."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from codegemm.arrays import FLOATS, float_dtype, name_of, written
from codegemm.engines.cpu.library import ALIGNED, CONTIGUOUS, NATIVE, WRITEABLE, address, give_back, take_workspace
from codegemm.operands import rows_for, transforms

_MAX_SEEN = 64
_READ = CONTIGUOUS | ALIGNED | NATIVE
_WRITTEN = _READ | WRITEABLE


class Bound(NamedTuple):
    """A call of compiled code, of the addresses of x, out, a workspace of so many bytes, and a bias."""

    run: Callable[..., None]
    workspace_bytes: int


class _Entry(NamedTuple):
    """What is known of one combination of shapes and dtypes; `bound` is None where there is no short way."""

    bound: Bound | None
    x_bytes: int = 0
    out_bytes: int = 0


class Shortcut:
    """Multiplies in some microseconds where that is one call of compiled code and no array needs a copy.

    shape: the weight's. bind: called once for a number of rows, x's and out's dtype; None where it is not one call.
    n, dtype: the most rows of x and their dtype that it lets pass; by default any that kernels may take.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        bind: Callable[[int, np.dtype, np.dtype], Bound | None],
        n: float = math.inf,
        dtype: np.dtype | None = None,
    ) -> None:
        self._shape, self._bind, self._n = shape, bind, n
        self._dtypes = FLOATS if dtype is None else (name_of(dtype),)
        self._entries: dict[Any, _Entry] = {}

    def multiply(self, x: Any, out: Any, bias: Any = None) -> Any:
        """x @ W^T + bias in `out` or a new array; None where the long way must be gone."""
        summand = 0 if bias is None else self._summand(bias)
        if bias is not None and not summand:
            return None
        given = out is not None
        if type(x) is np.ndarray:
            if not given:
                out = np.empty((*x.shape[:-1], self._shape[0]), x.dtype)
            elif type(out) is not np.ndarray:
                return None
            begin, out_begin = address(x, _READ), address(out, _WRITTEN)
        else:
            torch = sys.modules.get("torch")
            if torch is None or type(x) is not torch.Tensor or transforms(torch):
                return None
            begin = _address(torch, x)
            if not given and begin:
                out = x.new_empty(*x.shape[:-1], self._shape[0])  # numbers take half the time of a tuple
            elif type(out) is not torch.Tensor:
                return None
            out_begin = _address(torch, out)
        if not begin or not out_begin:
            return None
        key = (x.shape, out.shape, x.dtype, out.dtype)
        bound, x_bytes, out_bytes = self._entries.get(key) or self._enter(*key)
        if bound is None or (begin < out_begin + out_bytes and out_begin < begin + x_bytes):
            return None
        run, size = bound
        workspace = take_workspace(size)
        run(begin, out_begin, workspace.address, summand)
        give_back(workspace)
        if given and type(out) is not np.ndarray:
            written(out)
        return out

    def _summand(self, bias: Any) -> int:
        """Where a bias begins that is added as it is, [M] in float32; 0 for every other."""
        if type(bias) is np.ndarray:
            begin, single = address(bias, _READ), np.float32
        else:
            torch = sys.modules.get("torch")
            if torch is None or type(bias) not in (torch.Tensor, torch.nn.Parameter) or transforms(torch):
                return 0
            begin, single = _address(torch, bias), torch.float32
        return begin if bias.dtype == single and bias.shape == self._shape[:1] else 0

    def _enter(self, shape: tuple[int, ...], out_shape: tuple[int, ...], *dtypes: Any) -> _Entry:
        if len(self._entries) >= _MAX_SEEN:
            self._entries.clear()
        entry = self._entries[shape, out_shape, *dtypes] = self._entry(shape, out_shape, *dtypes)
        return entry

    def _entry(self, shape: tuple[int, ...], out_shape: tuple[int, ...], *dtypes: Any) -> _Entry:
        if not {str(dtype).removeprefix("torch.") for dtype in dtypes} <= {*self._dtypes, "float32"}:
            return _Entry(None)
        dtype, out_dtype = map(float_dtype, dtypes)
        rows = rows_for(shape, out_shape, dtype, out_dtype, self._shape)
        if not 0 < rows <= self._n or name_of(dtype) not in self._dtypes:
            return _Entry(None)
        bound = self._bind(rows, dtype, out_dtype)
        return _Entry(bound, math.prod(shape) * dtype.itemsize, math.prod(out_shape) * out_dtype.itemsize)


def _address(torch: Any, tensor: Any) -> int:
    """Where the numbers of a tensor begin; 0 where they aren't what it looks like, or torch wants to know of them."""
    if not tensor.is_cpu or not tensor.is_contiguous() or tensor.is_neg():
        return 0
    if tensor.requires_grad and torch.is_grad_enabled():
        return 0
    return int(tensor.data_ptr())
