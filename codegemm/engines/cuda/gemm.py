"""The library's dense product (cuBLAS, as CuPy loads it), into columns of an output and without an allocation."""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from typing import Any

import numpy as np

from codegemm import devices
from codegemm.devices import device_of
from codegemm.engines.cuda.model import START, Work

# cudaDataType, and cuBLAS's names for what is used of it.
_TYPES = {"float16": 2, "bfloat16": 14, "float32": 0}
_NO_TRANSPOSE, _TRANSPOSE = 0, 1
_COMPUTE_FLOAT32, _DEFAULT_ALGORITHM = 68, -1
# For each thread, GPU and stream, as cuBLAS's handle belongs to a thread and the products of a stream wait for each
# other. Kept for good, since graphs captured on the stream use it: two of them must not be replayed at the same time.
# `_spare` are for streams met first while they are captured, when nothing may be allocated.
_WORKSPACE_BYTES = 32 << 20  # what cuBLAS itself takes on Hopper
_workspaces: dict[tuple[int, int, int], Any] = {}
_spare: dict[tuple[int, int], Any] = {}
_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)


def work(shape: tuple[int, ...], n: int, dtype: np.dtype) -> Work:
    """What x [n, K] times a dense matrix [rows, K] of a shape has to do, its tensor cores as full as its tiles of at
    least 16 rows of x allow."""
    rows, k = shape
    padded = -(-n // 16) * 16
    return Work(
        bytes_read=dtype.itemsize * k * (rows + n),
        bytes_written=dtype.itemsize * n * rows,
        mma=rows * k * padded / 2048 * (1 if dtype.itemsize == 2 else 8),
        latency=START,
        multiply_adds=n * rows * k,
    )


def unavailable() -> str | None:
    """Why there is no cuBLAS, or None."""
    try:
        _cublas()
    except Exception as error:  # a missing library: every version raises another type
        return f"cuBLAS is missing: {str(error).splitlines()[0]}; pip install 'codegemm[cuda12]' (or cuda13)"
    return None


def load() -> None:
    """Do what the first product on the current GPU would do beforehand, and a captured one must not."""
    import cupy

    _cublas()
    _handle()
    if not cupy.cuda.runtime.streamIsCapturing(cupy.cuda.get_current_stream().ptr):
        _keep_spare((threading.get_ident(), cupy.cuda.runtime.getDevice()))


def multiply(x: Any, dense: Any, out: Any, first: int = 0, stream: Any = None) -> None:
    """out[:, first : first + rows] = x @ dense^T, summed in float32.

    x: [n, K]. dense: [rows, K] of x's dtype (float16, bfloat16 or float32). out: [n, M], of x's dtype or float32.
    Raises RuntimeError where cuBLAS refuses.
    """
    import cupy

    (n, k), dtype = x.shape, _TYPES[x.dtype.name]
    with devices.scope(device_of(x), None, stream):
        library, handle = _cublas(), _handle()
        current = cupy.cuda.get_current_stream().ptr
        _check(library.cublasSetStream_v2(handle, current))
        # A new stream has cuBLAS's own workspace again, and a captured one would allocate at every product.
        _check(library.cublasSetWorkspace_v2(handle, _workspace(current).data.ptr, _WORKSPACE_BYTES))
        # cuBLAS counts columns first: its C is the transpose of out.
        _check(library.cublasGemmEx(
            handle, _TRANSPOSE, _NO_TRANSPOSE, len(dense), n, k,
            ctypes.byref(_ONE), dense.data.ptr, dtype, k, x.data.ptr, dtype, k,
            ctypes.byref(_ZERO), out.data.ptr + first * out.itemsize, _TYPES[out.dtype.name], out.shape[1],
            _COMPUTE_FLOAT32, _DEFAULT_ALGORITHM,
        ))  # fmt: skip


def _workspace(stream: int) -> Any:
    """This thread's for products on that stream of the current GPU."""
    import cupy

    place = threading.get_ident(), cupy.cuda.runtime.getDevice()
    workspace = _workspaces.get((*place, stream))
    if workspace is None:
        if not cupy.cuda.runtime.streamIsCapturing(stream):
            workspace = cupy.empty(_WORKSPACE_BYTES, np.uint8)
            _keep_spare(place)
        elif place in _spare:
            workspace = _spare.pop(place)
        else:
            raise RuntimeError(
                "cuBLAS needs a workspace: make a plan, or a product on this stream, before capturing it"
            )
        _workspaces[*place, stream] = workspace
    return workspace


def _keep_spare(place: tuple[int, int]) -> None:
    import cupy

    if place not in _spare:
        _spare[place] = cupy.empty(_WORKSPACE_BYTES, np.uint8)


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLAS refused a product: status {status}")


@cache
def _cublas() -> Any:
    """The functions of cuBLAS themselves, since CuPy's refuse to be captured in a graph, which cuBLAS allows.

    They are found through CuPy's module, which is linked with the right version.
    """
    from cupy_backends.cuda.libs import cublas

    library = ctypes.CDLL(cublas.__file__)
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    matrix = (pointer, integer, integer)
    library.cublasSetStream_v2.argtypes = (pointer, pointer)
    library.cublasSetWorkspace_v2.argtypes = (pointer, pointer, ctypes.c_size_t)
    library.cublasGemmEx.argtypes = (
        pointer, *(integer,) * 5, pointer, *matrix, *matrix, pointer, *matrix, integer, integer,
    )  # fmt: skip
    return library


def _handle() -> int:
    """CuPy's handle of cuBLAS on the current GPU."""
    from cupy.cuda import device

    return int(device.get_cublas_handle())
