"""Multiplying by a weight: `matmul`, `linear` and `plan`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from codegemm import arrays, dispatch
from codegemm.formats.weight import TransposedWeight, Weight
from codegemm.kernel import Kernel

PRECISIONS = ("full",)


def matmul(a: Any, b: Any, *, out: Any = None, kernel: str = "auto", precision: str = "full") -> Any:
    """`a @ b` with NumPy's meaning, one of the two a quantised weight.

    matmul(x, w.T): x [..., K] -> [..., M].   matmul(w, X): X [K] or [..., K, N] -> [M] or [..., M, N].

    x: float16, bfloat16, float32 or float64 (computed in float32, whose range it then has), NumPy or torch on the CPU
        (gradients are not tracked); with a weight on a GPU CuPy, or NumPy, which is copied there and back.
    out: where to write, of the result's shape; x's dtype, or float32 for half x.
    kernel: a name of `codegemm.kernels()`, or `auto`.
    precision: `full`: an error of at most 2e-4 of the result's norm, before it is rounded to its dtype.

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
        total = arrays.from_torch(y) if arrays.is_torch(y) else y
        total += _device_array(bias, arrays.device_of(total)).astype(total.dtype, copy=False)
    return y


class Plan:
    """A product decided beforehand: `plan(x, out=y)` only checks, converts in place and runs.

    With `out=` nothing of the size of x or y is allocated (`reference` and `dense_bf16`, and kernels without a
    compiler, do allocate). It holds a workspace, so it serves one thread and stream at a time. `prepared` is the
    weight in the kernel's form.
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
        self.prepared = weight.prepared(self.kernel)
        self._workspace = _workspace(self.kernel, weight, self.n)
        xp = _module(weight.device)
        self._x = xp.empty((self.n, weight.shape[1]), self.dtype)
        # One buffer serves float32 and x's own dtype: it is as wide as the wider of them.
        self._y = xp.empty(self.n * weight.shape[0] * max(4, self.dtype.itemsize), np.uint8)

    def __call__(self, x: Any, out: Any = None, stream: Any = None) -> Any:
        """x [..., K] of at most n rows in the plan's dtype -> [..., M], in `out` where given."""
        array = _operand(x, self.weight.device)
        if array.dtype != self.dtype:
            raise TypeError(f"x: dtype {array.dtype}, this plan is for {self.dtype}")
        shape = _result_shape(array, self.weight)
        rows = math.prod(shape[:-1])
        if rows > self.n:
            raise ValueError(f"x: {rows} rows, this plan is for at most {self.n}")
        target = _target(out, shape, self.dtype, self.weight.device)
        if rows:
            direct = _direct(target, array)
            y2d = (target if direct else self._staged(target)).reshape(rows, -1)
            self.kernel.run(self.prepared, _rows_of(array, self._x[:rows]), y2d, self._workspace, stream)
            if not direct:
                target[...] = y2d.reshape(shape)
        return _result(target, out, x)

    def _staged(self, target: Any) -> Any:
        """As much of the plan's own buffer as `target` has, in its dtype."""
        return self._y[: target.size * target.itemsize].view(target.dtype.newbyteorder("="))

    def __repr__(self) -> str:
        return f"<plan {self.kernel.full_name} for {self.n} x {self.dtype} times {self.weight!r}>"


def plan(w: Weight, n: int = 1, dtype: Any = np.float32, kernel: str = "auto") -> Plan:
    """Decide and prepare the product of up to n rows of `dtype` with `w`, so that calls cost no more than the work."""
    return Plan(w, n, dtype, kernel)


def _times_transposed(x: Any, weight: Weight, out: Any, kernel: str, precision: str) -> Any:
    """x @ W^T."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: must be one of {', '.join(PRECISIONS)}")
    array = _operand(x, weight.device)
    shape = _result_shape(array, weight)
    target = _target(out, shape, array.dtype, weight.device)
    rows = math.prod(shape[:-1])
    chosen = dispatch.select(weight.spec, max(rows, 1), array.dtype, weight.device, kernel)
    if rows:
        xp = arrays.array_module(array)
        x2d = xp.ascontiguousarray(array).reshape(rows, -1)
        direct = _direct(target, array)
        y2d = (target if direct else xp.empty(shape, target.dtype.newbyteorder("="))).reshape(rows, -1)
        chosen.run(weight.prepared(chosen), x2d, y2d, _workspace(chosen, weight, rows), None)
        if not direct:
            target[...] = y2d.reshape(shape)
    return _result(target, out, x)


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
    array = arrays.from_torch(bias.cpu()) if arrays.is_torch(bias) else arrays.as_array(bias)
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
        if arrays.device_of(x) != "cpu" or device != "cpu":
            raise TypeError(
                f"x is a torch tensor on {arrays.device_of(x)} and the weight is on {device}: torch tensors "
                "are taken on the CPU, with a weight on the CPU"
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
        from codegemm.engines import cuda

        return cuda.to_device(array, device)
    raise TypeError(f"x is on {here} and the weight is on {device}: move one of them, like w.to({here!r})")


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
    if arrays.is_torch(out):
        return arrays.from_torch(out)
    if place == "cpu" and not out.flags.writeable:
        raise ValueError("out: is read-only")
    return out if place == device else _module(device).empty(shape, out.dtype)


def _direct(target: Any, x: Any) -> bool:
    """Whether a kernel may write to `target` itself: contiguous, aligned, native and apart from x."""
    if not target.flags.c_contiguous:
        return False
    if not isinstance(target, np.ndarray):
        return True
    return target.flags.aligned and target.dtype.isnative and not np.may_share_memory(target, x)


def _rows_of(x: Any, staging: Any) -> Any:
    """x as contiguous [rows, K]; through the staging buffer only where it must be."""
    if x.flags.c_contiguous:
        return x.reshape(staging.shape)
    staging.reshape(x.shape)[...] = x
    return staging


def _result(target: Any, out: Any, x: Any) -> Any:
    """What the caller gets: `out` if given, else the result in x's own library and place."""
    if out is not None:
        if arrays.device_of(out) != arrays.device_of(target):
            out[...] = target.get()
        return out
    if arrays.is_torch(x):
        return arrays.to_torch(target)
    if isinstance(target, np.ndarray) or not isinstance(arrays.as_array(x), np.ndarray):
        return target
    return target.get()


def _workspace(kernel: Kernel, weight: Weight, n: int) -> Any:
    """A buffer of the kernel's size, its start on a 64-byte boundary."""
    size = kernel.workspace(weight.spec, n)
    if weight.device != "cpu":
        return _module(weight.device).empty(size, np.uint8)  # CuPy's pool aligns to 512
    raw = np.empty(size + 63, np.uint8)
    start = -raw.__array_interface__["data"][0] % 64
    return raw[start : start + size]


def _module(device: str) -> Any:
    if device == "cpu":
        return np
    import cupy

    return cupy


def _named(value: Any) -> str:
    return "w.T" if isinstance(value, TransposedWeight) else type(value).__name__
