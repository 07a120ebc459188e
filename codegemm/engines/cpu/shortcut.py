"""The short way of a product: x and out that compiled code takes as they are, nothing copied, nothing decided twice."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from codegemm.arrays import FLOATS, float_dtype, name_of
from codegemm.engines.cpu.library import ALIGNED, CONTIGUOUS, NATIVE, WRITEABLE, address, give_back, take_workspace
from codegemm.operands import rows_for, watch

_MAX_SEEN = 64
_READ = CONTIGUOUS | ALIGNED | NATIVE
_WRITTEN = _READ | WRITEABLE


class Bound(NamedTuple):
    """Calls of compiled code, of the addresses of x, out, a workspace of so many bytes, and a bias."""

    run: Callable[..., None]
    workspace_bytes: int


class Summand(NamedTuple):
    """A bias [M] in float32, and where it begins."""

    array: np.ndarray
    address: int

    @classmethod
    def of(cls, array: np.ndarray) -> Summand:
        """Of an array that stays where it is."""
        return cls(array, address(array))


class _Entry(NamedTuple):
    """What is known of one combination of shapes and dtypes; `bound` is None where there is no short way."""

    bound: Bound | None
    out_shape: tuple[int, ...] = ()
    x_bytes: int = 0
    out_bytes: int = 0


class Shortcut:
    """Multiplies in some microseconds where compiled code does it alone and no array needs a copy.

    shape: the weight's. bind: called once for a number of rows, x's and out's dtype; None where there is more to it.
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

    def decide(self, x: Any, out: Any) -> None:
        """What `multiply` runs for arrays of such shapes and dtypes."""
        self._known(_key(x, out))

    def multiply(self, x: Any, out: Any, bias: Any = None) -> Any:
        """x @ W^T + bias, of any library or a `Summand`, in `out` or a new array; None where the long way must be
        gone."""
        torch: Any = None
        if type(x) is not np.ndarray:
            torch = _torch or _find_torch()
            if torch is None or type(x) is not torch.Tensor or torch.transforms():
                return None
        if out is not None and type(out) is not type(x):
            return None
        begin, summand = address(x, _READ) if torch is None else torch.address(x), 0
        if not begin:
            return None
        if bias is not None:
            summand = bias.address if type(bias) is Summand else self._summand(bias)
            if not summand:
                return None
        key = (x.shape, x.dtype) if out is None else (x.shape, x.dtype, out.shape, out.dtype)  # of `_key`
        bound, shape, x_bytes, out_bytes = self._entries.get(key) or self._known(key)
        if bound is None:
            return None
        if out is None:
            y: Any = np.empty(shape, x.dtype) if torch is None else x.new_empty(*shape)  # a tuple takes longer
            y_begin = address(y) if torch is None else y.data_ptr()
        else:
            y, y_begin = out, address(out, _WRITTEN) if torch is None else torch.address(out)
            if not y_begin or (begin < y_begin + out_bytes and y_begin < begin + x_bytes):
                return None
        run, size = bound
        workspace = take_workspace(size)
        run(begin, y_begin, workspace.address, summand)
        give_back(workspace)
        if torch is not None and out is not None:
            torch.written(out)
        return y

    def _summand(self, bias: Any) -> int:
        """Where a bias begins that is added as it is, [M] in float32; 0 for every other."""
        if type(bias) is np.ndarray:
            begin, single = address(bias, _READ), np.float32
        else:
            torch = _torch or _find_torch()
            if torch is None or type(bias) not in torch.tensors or torch.transforms():
                return 0
            begin, single = torch.address(bias), torch.float32
        return begin if bias.dtype == single and bias.shape == self._shape[:1] else 0

    def _known(self, key: tuple[Any, ...]) -> _Entry:
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= _MAX_SEEN:
                self._entries.clear()
            entry = self._entries[key] = self._entry(*key)
        return entry

    def _entry(self, shape: tuple[int, ...], dtype: Any, out_shape: Any = None, out_dtype: Any = None) -> _Entry:
        out_shape = (*shape[:-1], self._shape[0]) if out_shape is None else tuple(out_shape)
        dtypes = (dtype, dtype if out_dtype is None else out_dtype)
        if not {str(each).removeprefix("torch.") for each in dtypes} <= {*self._dtypes, "float32"}:
            return _Entry(None)
        dtype, out_dtype = map(float_dtype, dtypes)
        rows = rows_for(tuple(shape), out_shape, dtype, out_dtype, self._shape)
        if not 0 < rows <= self._n or name_of(dtype) not in self._dtypes:
            return _Entry(None)
        x_bytes, out_bytes = math.prod(shape) * dtype.itemsize, math.prod(out_shape) * out_dtype.itemsize
        return _Entry(self._bind(rows, dtype, out_dtype), out_shape, x_bytes, out_bytes)


def _key(x: Any, out: Any) -> tuple[Any, ...]:
    return (x.shape, x.dtype) if out is None else (x.shape, x.dtype, out.shape, out.dtype)


class _Torch:
    """What calls ask of torch, looked up once."""

    def __init__(self, torch: Any) -> None:
        self.Tensor, self.tensors, self.float32 = torch.Tensor, (torch.Tensor, torch.nn.Parameter), torch.float32
        self.transforms, self.written = watch(torch), torch.autograd.graph.increment_version
        self._is_grad_enabled = torch.is_grad_enabled

    def address(self, tensor: Any) -> int:
        """Where the numbers of a tensor begin; 0 where they aren't what it looks like, or torch wants to know of
        them."""
        if tensor.requires_grad and self._is_grad_enabled():
            return 0
        try:
            return tensor.data_ptr() if tensor.is_cpu and tensor.is_contiguous() and not tensor.is_neg() else 0
        except RuntimeError:  # some layouts have no such thing
            return 0


_torch: _Torch | None = None


def _find_torch() -> _Torch | None:
    """If it was imported, as it may be at any time."""
    global _torch
    torch = sys.modules.get("torch")
    _torch = None if torch is None else _Torch(torch)
    return _torch
