"""torch's CUDA tensors as CuPy arrays on the same memory, and which GPU and stream a product runs on."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np

from codegemm.arrays import bfloat16, is_torch
from codegemm.engines.cuda.device import number
from codegemm.engines.cuda.library import Stream

_HERE = nullcontext()


def view(tensor: Any) -> Any:
    """A CuPy array on a tensor's memory, valid as long as the tensor is; nothing is copied, nothing synchronised."""
    import cupy

    name = str(tensor.dtype).removeprefix("torch.")
    dtype = bfloat16() if name == "bfloat16" else np.dtype(name)
    size = tensor.element_size()
    extent = (
        1 + sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0
    )
    memory = cupy.cuda.UnownedMemory(tensor.data_ptr(), extent * size, None, tensor.device.index)
    strides = tuple(step * size for step in tensor.stride())
    return cupy.ndarray(tuple(tensor.shape), dtype, cupy.cuda.MemoryPointer(memory, 0), strides)


def stream_of(tensor: Any) -> Stream:
    """torch's current stream on the tensor's GPU."""
    return Stream(sys.modules["torch"].cuda.current_stream(tensor.device).cuda_stream)


def scope(device: str, x: Any = None, stream: Any = None) -> AbstractContextManager[Any]:
    """Within it CuPy works on `device` and on `stream` (with a `ptr`), for a tensor x torch's current one."""
    import cupy

    where = number(device)
    if stream is None and is_torch(x) and x.device.type == "cuda":
        stream = stream_of(x)
    if stream is None:
        return _HERE if cupy.cuda.runtime.getDevice() == where else cupy.cuda.Device(where)
    stack = ExitStack()
    stack.enter_context(cupy.cuda.Device(where))
    stack.enter_context(cupy.cuda.Stream.from_external(Stream(stream.ptr)))
    return stack
