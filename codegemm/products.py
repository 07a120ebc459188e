"""Multiplying by a weight: `matmul`, `linear` and `plan`."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from codegemm import arrays, dispatch
from codegemm.engines import cuda
from codegemm.formats.weight import TransposedWeight, Weight
from codegemm.kernel import Kernel

_HERE = nullcontext()


def matmul(a: Any, b: Any, *, out: Any = None, kernel: str = "auto", precision: str = "full") -> Any:
    """`a @ b` with NumPy's meaning, one of the two a quantised weight.

    matmul(x, w.T): x [..., K] -> [..., M].   matmul(w, X): X [K] or [..., K, N] -> [M] or [..., M, N].

    x: float16, bfloat16, float32 or float64 (computed in float32, whose range it then has), NumPy or torch on the CPU
        (gradients are not tracked); with a weight on a GPU all but float64, CuPy or torch there, on whose current
        stream the product runs, or NumPy, which is copied there and back.
    out: where to write, of the result's shape; x's dtype, or float32 for half x.
    kernel: a name of `codegemm.kernels()`, or `auto`.
    precision: `full`: an error of at most 2e-4 of the result's norm (on the CPU more where a few centroids are much
        larger than all others), on a GPU 1e-3 for more than one row of x or x in
        float32 (2e-3 in bfloat16 where `dequant_dense` is taken), before it is rounded to its dtype. `fast` lets
        `auto` take kernels with an error of about 1.2e-2 for normally distributed x where there are such
        (`psumbook_fast`).

    Raises ValueError (shapes), TypeError (dtypes, devices) or KernelError (a kernel that can't run).
    """
    if isinstance(b, TransposedWeight) and not isinstance(a, (Weight, TransposedWeight)):
        return _times_transposed(a, b.T, out, kernel, precision)
    if isinstance(a, Weight) and not isinstance(b, (Weight, TransposedWeight)):
        return _times_columns(a, b, out, kernel, precision)
    raise TypeError(
        f"matmul of {_named(a)} and {_named(b)}: a weight multiplies as x @ w.T or w @ X, with x and X dense"
    )


def linear(x: Any, w: Weight, bias: Any = None, *, kernel: str = "auto", precision: str = "full") -> Any:
    """x @ w.T + bias, a linear layer: x [..., K], bias [M] or None -> [..., M] in x's dtype."""
    if not isinstance(w, Weight):
        raise TypeError(f"linear: w is {_named(w)}, must be a quantised weight")
    if bias is not None:
        bias = _bias(bias, w)
    y = matmul(x, w.T, kernel=kernel, precision=precision)
    if bias is not None:
        with _scope(w.device, x):
            total = arrays.from_torch(y) if arrays.is_torch(y) else y
            total += _device_array(bias, arrays.device_of(total)).astype(total.dtype, copy=False)
    return y


@dataclass(frozen=True)
class _Call:
    """Everything that a product with one weight needs and that only its rows, dtype and kernel's name decide."""

    kernel: Kernel
    prepared: Any
    workspace_bytes: int


def _call_for(weight: Weight, rows: int, dtype: np.dtype, name: str) -> _Call:
    """Kept with the weight: deciding anew costs more than a small product."""
    key = (rows, dtype, name, dispatch.version())
    found = weight.calls.get(key)
    if found is None:
        kernel = dispatch.select(weight.spec, rows, dtype, weight.device, name)
        size = kernel.workspace(weight.spec, rows, weight.device)
        found = weight.calls[key] = _Call(kernel, weight.prepared(kernel), size)
    return found


class Plan:
    """A product decided beforehand: `plan(x, out=y)` only checks, converts in place and runs.

    With `out=` nothing of the size of x or y is allocated (`reference` and `dense_bf16`, and kernels without a
    compiler, do allocate). It holds a workspace, so it serves one thread and stream at a time. With x and out on its
    GPU a call never synchronises, and compiles nothing unless one of them has to be copied, so that a CUDA graph can
    capture it.
    """

    def __init__(self, weight: Weight, n: int, dtype: Any, kernel: str) -> None:
        if not isinstance(weight, Weight):
            raise TypeError(f"plan: w is {_named(weight)}, must be a quantised weight")
        if not isinstance(n, (int, np.integer)) or isinstance(n, bool) or n < 1:
            raise ValueError(f"n={n!r}: must be an integer of at least 1")
        self.weight = weight
        self.n = int(n)
        self.dtype = arrays.float_dtype(dtype)
        self.kernel: Kernel = dispatch.select(weight.spec, self.n, self.dtype, weight.device, kernel)
        with _scope(weight.device):
            self._prepared = weight.prepared(self.kernel)
            self.kernel.load(self._prepared, self.n, self.dtype)
            size = self.kernel.workspace(weight.spec, self.n, weight.device)
            self._workspace = _new_workspace(weight.device, size)
            xp = _module(weight.device)
            self._x = xp.empty((self.n, weight.shape[1]), self.dtype)
            # One buffer serves float32 and x's own dtype: it is as wide as the wider of them.
            self._y = xp.empty(self.n * weight.shape[0] * max(4, self.dtype.itemsize), np.uint8)
            if weight.device != "cpu":
                cuda.synchronize()  # the calls may come on any stream
        self._direct = self._new_direct()

    @property
    def prepared(self) -> Any:
        """The weight in the kernel's form; another weight of the same spec in this form may take its place."""
        return self._prepared

    @prepared.setter
    def prepared(self, prepared: Any) -> None:
        self._prepared = prepared
        with _scope(self.weight.device):
            self.kernel.load(prepared, self.n, self.dtype)
        self._direct = self._new_direct()

    def _new_direct(self) -> Any:
        if self.weight.device == "cpu":
            return None
        bind = partial(self.kernel.bind, self._prepared)
        return cuda.Direct(self.weight.device, self.weight.shape, bind, self.n, self.dtype)

    def __call__(self, x: Any, out: Any = None, stream: Any = None) -> Any:
        """x [..., K] of at most n rows in the plan's dtype -> [..., M], in `out` where given.

        stream: on a GPU what to run on, an object with `ptr`; else x's own library's current stream.
        """
        if self._direct is not None:
            found = self._direct.find(x, out, stream)
            if found is not None:
                run, x2d, y2d, stream = found
                run(x2d, y2d, self._workspace, stream)
                return out
        with _scope(self.weight.device, x, stream):
            return self._call(x, out)

    def _call(self, x: Any, out: Any) -> Any:
        array = _operand(x, self.weight.device)
        if array.dtype != self.dtype:
            raise TypeError(f"x: dtype {array.dtype}, this plan is for {self.dtype}")
        shape = _result_shape(array, self.weight)
        rows = math.prod(shape[:-1])
        if rows > self.n:
            raise ValueError(f"x: {rows} rows, this plan is for at most {self.n}")
        out = _torch_result(x, shape) if out is None else out
        target = _target(out, shape, self.dtype, self.weight.device)
        if rows:
            direct = _direct(target, array)
            y2d = (target if direct else self._staged(target)).reshape(rows, -1)
            self.kernel.run(self._prepared, _rows_of(array, self._x[:rows]), y2d, self._workspace, None)
            if not direct:
                target[...] = y2d.reshape(shape)
        return _result(target, out, x)

    def _staged(self, target: Any) -> Any:
        """As much of the plan's own buffer as `target` has, in its dtype."""
        return self._y[: target.size * target.itemsize].view(target.dtype.newbyteorder("="))

    def __repr__(self) -> str:
        return f"<plan {self.kernel.full_name} for {self.n} x {self.dtype} times {self.weight!r}>"


def plan(w: Weight, n: int = 1, dtype: Any = np.float32, kernel: str = "auto", precision: str = "full") -> Plan:
    """Decide and prepare the product of up to n rows of `dtype` with `w`, so that calls cost no more than the work."""
    return Plan(w, n, dtype, dispatch.name_for(kernel, precision))


def _times_transposed(x: Any, weight: Weight, out: Any, kernel: str, precision: str) -> Any:
    """x @ W^T."""
    kernel = dispatch.name_for(kernel, precision)
    if weight.device != "cpu" and out is not None and _run_directly(weight, x, out, kernel):
        return out
    with _scope(weight.device, x):
        array = _operand(x, weight.device)
        shape = _result_shape(array, weight)
        out = _torch_result(x, shape) if out is None else out
        target = _target(out, shape, array.dtype, weight.device)
        rows = math.prod(shape[:-1])
        call = _call_for(weight, max(rows, 1), array.dtype, kernel)
        if rows:
            xp = arrays.array_module(array)
            x2d = xp.ascontiguousarray(array).reshape(rows, -1)
            if not _aligned(x2d):
                x2d = x2d.copy()
            direct = _direct(target, array)
            y2d = (target if direct else xp.empty(shape, target.dtype.newbyteorder("="))).reshape(rows, -1)
            if weight.device == "cpu":
                workspace = _new_workspace("cpu", call.workspace_bytes)
            else:
                workspace = cuda.workspace(weight.device, call.workspace_bytes)
            call.kernel.run(call.prepared, x2d, y2d, workspace, None)
            if not direct:
                target[...] = y2d.reshape(shape)
        return _result(target, out, x)


def _run_directly(weight: Weight, x: Any, out: Any, kernel: str) -> bool:
    """On a GPU, out = x @ W^T where nothing has to be made or copied for it; False where the long way must be gone."""
    key = ("direct", kernel, dispatch.version())
    direct = weight.calls.get(key)
    if direct is None:

        def make(rows: int, dtype: np.dtype, out_dtype: np.dtype) -> tuple[Any, int]:
            call = _call_for(weight, rows, dtype, kernel)
            return call.kernel.bind(call.prepared, rows, dtype, out_dtype), call.workspace_bytes

        direct = weight.calls[key] = cuda.Direct(weight.device, weight.shape, make)
    found = direct.find(x, out, None)
    if found is None:
        return False
    (run, workspace_bytes), x2d, y2d, stream = found
    workspace = cuda.find_workspace(weight.device, workspace_bytes, stream)
    if workspace is None:
        return False
    run(x2d, y2d, workspace, stream)
    return True


def _times_columns(weight: Weight, x: Any, out: Any, kernel: str, precision: str) -> Any:
    """W @ X, through the transposes: the columns of X are the rows of a batch."""
    if not arrays.is_torch(x):
        x = arrays.as_array(x)
    if x.ndim < 2:
        return _times_transposed(x, weight, out, kernel, precision)
    if x.shape[-2] != weight.shape[1]:
        raise ValueError(
            f"X: shape {tuple(x.shape)}, its last axis but one must be in_features={weight.shape[1]} of the weight"
        )
    shape = (*x.shape[:-2], weight.shape[0], x.shape[-1])
    if out is not None and tuple(getattr(out, "shape", ())) != shape:
        raise ValueError(f"out: shape {tuple(getattr(out, 'shape', ()))}, must be {shape}")
    rows = _swap(x)
    y = _times_transposed(rows, weight, None if out is None else _swap(out), kernel, precision)
    return _swap(y) if out is None else out


def _bias(bias: Any, weight: Weight) -> Any:
    """The bias as a NumPy or CuPy array of the right shape; ValueError or TypeError otherwise."""
    if arrays.is_torch(bias):
        array = arrays.from_torch(bias if arrays.device_of(bias) == weight.device else bias.cpu())
    else:
        array = arrays.as_array(bias)
    if array.dtype.kind not in "fiu" and array.dtype.name not in arrays.FLOATS:
        raise TypeError(f"bias: dtype {array.dtype}, must be real numbers")
    if array.shape != (weight.shape[0],):
        raise ValueError(f"bias: shape {tuple(array.shape)}, must be ({weight.shape[0]},)")
    return array


def _swap(array: Any) -> Any:
    return array.swapaxes(-1, -2)


def _operand(x: Any, device: str) -> Any:
    """x as an array on the weight's device; TypeError for a dtype or place that won't do."""
    if arrays.is_torch(x):
        here = arrays.device_of(x)
        if here != device:
            raise TypeError(
                f"x is a torch tensor on {here} and the weight is on {device}: move one of them, like "
                + (f"w.to({here!r})" if here.startswith(("cpu", "cuda")) else f"x.to({device!r})")
            )
        _check_float(str(x.dtype).removeprefix("torch."))
        return arrays.from_torch(x)
    array = arrays.as_array(x)
    _check_float(arrays.name_of(array.dtype))
    if not array.dtype.isnative or (isinstance(array, np.ndarray) and not array.flags.aligned):
        array = array.astype(array.dtype.newbyteorder("="))
    return _device_array(array, device)


def _check_float(name: str) -> None:
    if name not in arrays.FLOATS:
        raise TypeError(f"x: dtype {name}, must be one of {', '.join(arrays.FLOATS)}")


def _device_array(array: Any, device: str) -> Any:
    """NumPy goes to a GPU; every other move is the caller's to make."""
    array = arrays.as_array(array)
    here = arrays.device_of(array)
    if here == device:
        return array
    if here == "cpu":
        return cuda.to_device(array, device)
    raise TypeError(f"x is on {here} and the weight is on {device}: move one of them, like w.to({here!r})")


def _torch_result(x: Any, shape: tuple[int, ...]) -> Any:
    """Where the product with a torch tensor on a GPU ends up; None for every other x, whose result comes of itself."""
    return x.new_empty(shape) if arrays.is_torch(x) and x.device.type == "cuda" else None


def _result_shape(x: Any, weight: Weight) -> tuple[int, ...]:
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x: shape {tuple(x.shape)}, its last axis must be in_features={weight.shape[1]} of the weight"
        )
    return (*x.shape[:-1], weight.shape[0])


def _target(out: Any, shape: tuple[int, ...], dtype: np.dtype, device: str) -> Any:
    """The array on the weight's device that a kernel's result ends in: `out` itself where that is possible."""
    if out is None:
        return _module(device).empty(shape, dtype)
    if isinstance(out, np.ndarray):
        name = arrays.name_of(out.dtype)
    else:
        name = str(getattr(out, "dtype", type(out).__name__)).removeprefix("torch.")
    if tuple(getattr(out, "shape", ())) != shape:
        raise ValueError(f"out: shape {tuple(getattr(out, 'shape', ()))}, must be {shape}")
    if name != arrays.name_of(dtype) and (name != "float32" or dtype.itemsize != 2):
        allowed = f"{dtype} or float32" if dtype.itemsize == 2 else f"{dtype}"
        raise TypeError(f"out: dtype {name}, must be {allowed} for {dtype} x")
    place = arrays.device_of(out)
    if place not in (device, "cpu"):
        raise TypeError(f"out is on {place} and the weight is on {device}")
    if place == device and arrays.is_torch(out):
        return arrays.from_torch(out)
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out: is read-only")
    return out if place == device else _module(device).empty(shape, arrays.float_dtype(name))


def _direct(target: Any, x: Any) -> bool:
    """Whether a kernel may write to `target` itself: contiguous, aligned, native and apart from x."""
    if not target.flags.c_contiguous:
        return False
    if not isinstance(target, np.ndarray):
        begin, target_begin = x.data.ptr, target.data.ptr
        return bool(begin >= target_begin + target.nbytes or target_begin >= begin + x.nbytes)
    return target.flags.aligned and target.dtype.isnative and not np.may_share_memory(target, x)


def _rows_of(x: Any, staging: Any) -> Any:
    """x as contiguous [rows, K]; through the staging buffer only where it must be."""
    if x.flags.c_contiguous and _aligned(x):
        return x.reshape(staging.shape)
    staging.reshape(x.shape)[...] = x
    return staging


def _aligned(x: Any) -> bool:
    """Whether kernels on a GPU can load 16 bytes at a time; on the CPU it does not matter."""
    return isinstance(x, np.ndarray) or x.data.ptr % 16 == 0


def _result(target: Any, out: Any, x: Any) -> Any:
    """What the caller gets: `out` if given, else the result in x's own library and place."""
    if out is not None:
        if arrays.device_of(out) != arrays.device_of(target):
            (arrays.from_torch(out) if arrays.is_torch(out) else out)[...] = target.get()
        return out
    if arrays.is_torch(x):
        return arrays.to_torch(target)
    if isinstance(target, np.ndarray) or not isinstance(arrays.as_array(x), np.ndarray):
        return target
    return target.get()


def _new_workspace(device: str, size: int) -> Any:
    """A buffer of `size` bytes, its start on a 64-byte boundary; on a GPU zeros."""
    if device != "cpu":
        return cuda.new_workspace(size)
    raw = np.empty(size + 63, np.uint8)
    start = -raw.__array_interface__["data"][0] % 64
    return raw[start : start + size]


def _scope(device: str, x: Any = None, stream: Any = None) -> AbstractContextManager[Any]:
    """Where arrays on `device` are made and copied: its GPU is the current one, and the stream that x is on."""
    if device == "cpu":
        return _HERE
    return cuda.scope(device, x, stream)


def _module(device: str) -> Any:
    if device == "cpu":
        return np
    import cupy

    return cupy


def _named(value: Any) -> str:
    return "w.T" if isinstance(value, TransposedWeight) else type(value).__name__
