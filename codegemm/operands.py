"""What comes into a product and what goes out: arrays of three libraries, of any layout and place, as kernels take
them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import numpy as np

from codegemm import arrays, devices
from codegemm.arrays import from_torch
from codegemm.devices import Device, device_of


def incoming(x: Any, device: Device) -> Any:
    """x as an array on the weight's device, of native byte order; TypeError for a dtype or place that won't do."""
    if arrays.is_torch(x):
        check_place("x", x, device)
        arrays.check_float("x", x)
        return from_torch(x, "x")
    array = arrays.as_array(x, "x")
    arrays.check_float("x", array)
    if not array.dtype.isnative or (isinstance(array, np.ndarray) and not array.flags.aligned):
        array = array.astype(array.dtype.newbyteorder("="))
    return on_device(array, device)


def check_place(name: str, tensor: Any, device: Device) -> None:
    """TypeError for a tensor elsewhere than the weight: none is moved unasked."""
    here = device_of(tensor)
    if here != device:
        raise TypeError(
            f"{name} is a torch tensor on {here} and the weight is on {device}: move one of them, like "
            + (f"w.to('{here}')" if here.startswith(("cpu", "cuda")) else f"{name}.to('{device}')")
        )


def on_device(array: Any, device: Device, name: str = "x") -> Any:
    """NumPy goes to a GPU; every other move is the caller's to make: a TypeError."""
    array = arrays.as_array(array, name)
    here = device_of(array)
    if here == device:
        return array
    if here == devices.CPU:
        return devices.move(array, device)
    raise TypeError(f"{name} is on {here} and the weight is on {device}: move one of them, like w.to('{here}')")


def result_shape(x: Any, weight_shape: tuple[int, int]) -> tuple[int, ...]:
    """[..., M] of x [..., K]; ValueError for another K."""
    if x.ndim == 0 or x.shape[-1] != weight_shape[1]:
        raise ValueError(
            f"x: shape {tuple(x.shape)}, its last axis must be in_features={weight_shape[1]} of the weight"
        )
    return (*x.shape[:-1], weight_shape[0])


def rows_for(
    shape: tuple[int, ...], out_shape: tuple[int, ...], dtype: Any, out_dtype: Any, weight_shape: tuple[int, int]
) -> int:
    """Rows of x where an x and an out of these shapes and dtypes fit each other and the weight, else 0."""
    fits = (
        shape[-1:] == weight_shape[1:]
        and out_shape == (*shape[:-1], weight_shape[0])
        and (out_dtype == dtype or (out_dtype == np.float32 and dtype.itemsize == 2))
    )
    return prod(shape[:-1]) if fits else 0


def output_like(x: Any, shape: tuple[int, ...]) -> Any:
    """Where the product with a torch tensor on a GPU ends up; None for every other x, whose result comes of itself."""
    return x.new_empty(shape) if arrays.is_torch(x) and x.device.type == "cuda" else None


def target(out: Any, shape: tuple[int, ...], dtype: np.dtype, device: Device) -> Any:
    """The array on the weight's device that a result ends in: `out` itself where that is possible.

    ValueError or TypeError for an `out` that won't do for x of `dtype`.
    """
    if out is None:
        return devices.module(device).empty(shape, dtype)
    if isinstance(out, np.ndarray):
        name = arrays.name_of(out.dtype)
    else:
        name = str(getattr(out, "dtype", type(out).__name__)).removeprefix("torch.")
    if tuple(getattr(out, "shape", ())) != shape:
        raise ValueError(f"out: shape {tuple(getattr(out, 'shape', ()))}, must be {shape}")
    if name != arrays.name_of(dtype) and (name != "float32" or dtype.itemsize != 2):
        allowed = f"{dtype} or float32" if dtype.itemsize == 2 else f"{dtype}"
        raise TypeError(f"out: dtype {name}, must be {allowed} for {dtype} x")
    place = device_of(out)
    if place not in (device, devices.CPU):
        raise TypeError(f"out is on {place} and the weight is on {device}")
    if place == device and arrays.is_torch(out):
        return from_torch(out, "out")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out: is read-only")
    return out if place == device else devices.module(device).empty(shape, arrays.float_dtype(name))


def as_rows(x: Any, rows: int, buffer: Any = None) -> Any:
    """x as kernels read it, contiguous [rows, K]: itself where it is so, else a copy, in `buffer` if there is one."""
    if x.flags.c_contiguous and _is_aligned(x):
        return x.reshape(rows, x.shape[-1])
    if buffer is None:
        copy = arrays.array_module(x).ascontiguousarray(x)
        return (copy if _is_aligned(copy) else copy.copy()).reshape(rows, x.shape[-1])
    staged = buffer[: x.nbytes].view(x.dtype).reshape(rows, x.shape[-1])
    staged.reshape(x.shape)[...] = x
    return staged


def takes_kernels(target: Any, x: Any) -> bool:
    """Whether a kernel may write to `target` itself: contiguous, aligned, native and apart from x."""
    if not target.flags.c_contiguous:
        return False
    if not isinstance(target, np.ndarray):
        begin, target_begin = x.data.ptr, target.data.ptr
        return bool(begin >= target_begin + target.nbytes or target_begin >= begin + x.nbytes)
    return target.flags.aligned and target.dtype.isnative and not np.may_share_memory(target, x)


def staged(target: Any, buffer: Any = None, dtype: Any = None) -> Any:
    """An array for a kernel to write in place of `target`, of its dtype or the one named, in the bytes of `buffer` if
    there is one."""
    dtype = target.dtype.newbyteorder("=") if dtype is None else np.dtype(dtype)
    if buffer is None:
        return arrays.array_module(target).empty(target.shape, dtype)
    return buffer[: target.size * dtype.itemsize].view(dtype).reshape(target.shape)


def add_bias(y: Any, bias: Any, target: Any) -> None:
    """target = y + bias, rounded once to the target's dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        arrays.array_module(target).add(y, bias, out=target, casting="unsafe")


def outgoing(target: Any, out: Any, x: Any) -> Any:
    """What the caller gets: `out` if given, else the result in x's own library and place."""
    if out is not None:
        if device_of(out) != device_of(target):
            (from_torch(out) if arrays.is_torch(out) else out)[...] = target.get()
        if arrays.is_torch(out):
            arrays.written(out)
        return out
    if arrays.is_torch(x):
        return arrays.to_torch(target)
    if isinstance(target, np.ndarray) or not isinstance(arrays.as_array(x), np.ndarray):
        return target
    return target.get()


def bias_of(bias: Any, out_features: int, device: Device) -> Any:
    """A bias as a NumPy or CuPy array [M] on the device; ValueError or TypeError for what can't be one."""
    if arrays.is_torch(bias):
        check_place("bias", bias, device)
    array = arrays.as_array(bias, "bias")
    if array.dtype.kind not in "fiu" and array.dtype.name not in arrays.FLOATS:
        raise TypeError(f"bias: dtype {array.dtype}, must be real numbers")
    if array.shape != (out_features,):
        raise ValueError(f"bias: shape {tuple(array.shape)}, must be ({out_features},)")
    return on_device(array, device, "bias")


def summand(bias: Any, dtype: np.dtype) -> Any:
    """A bias as it is added to products of x in `dtype`: float64 for float64, else float32; contiguous and aligned."""
    with np.errstate(over="ignore"):
        wide = bias.astype(np.float64 if dtype.itemsize == 8 else np.float32, copy=False)
    return np.require(wide, requirements=["C", "A"]) if isinstance(wide, np.ndarray) else as_rows(wide, 1)[0]


def tracks(*values: Any) -> bool:
    """Whether torch does more with one of these than to compute: keeps a graph for it, or transforms it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if any(tensor.requires_grad for tensor in tensors) and torch.is_grad_enabled():
        return True
    return bool(tensors) and watch(torch)() and any(_is_transformed(torch, tensor) for tensor in tensors)


@cache
def watch(torch: Any) -> Callable[[], bool]:
    """What tells whether a transformation of torch's is at work: forward-mode derivatives, or one of `torch.func`."""
    forward_mode, innermost = torch.autograd.forward_ad, torch._C._functorch.peek_interpreter_stack
    return lambda: forward_mode._current_level >= 0 or innermost() is not None


def _is_transformed(torch: Any, tensor: Any) -> bool:
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return True
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


def _is_aligned(x: Any) -> bool:
    """Whether kernels on a GPU can load 16 bytes at a time; on the CPU it does not matter."""
    return isinstance(x, np.ndarray) or x.data.ptr % 16 == 0
