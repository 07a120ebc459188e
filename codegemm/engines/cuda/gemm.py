"""The library's dense product (cuBLAS, as CuPy loads it), into columns of an output and without an allocation."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from codegemm.engines.cuda import tensors

# cudaDataType, and cuBLAS's names for what is used of it.
_TYPES = {"float16": 2, "bfloat16": 14, "float32": 0}
_NO_TRANSPOSE, _TRANSPOSE = 0, 1
_COMPUTE_FLOAT32, _DEFAULT_ALGORITHM = 68, -1
_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)


def unavailable() -> str | None:
    """Why there is no cuBLAS, or None."""
    try:
        _cublas()
    except Exception as error:  # a missing library: every version raises another type
        return f"cuBLAS is missing: {str(error).splitlines()[0]}; pip install 'codegemm[cuda12]' (or cuda13)"
    return None


def load() -> None:
    """Do what the first product on the current GPU would do beforehand, and a captured one must not."""
    _cublas()
    _handle()


def multiply(x: Any, dense: Any, out: Any, first: int = 0, stream: Any = None) -> None:
    """out[:, first : first + rows] = x @ dense^T, summed in float32.

    x: [n, K]. dense: [rows, K] of x's dtype (float16, bfloat16 or float32). out: [n, M], of x's dtype or float32.
    Raises RuntimeError where cuBLAS refuses.
    """
    n, k = x.shape
    with tensors.scope(f"cuda:{x.device.id}", None, stream):
        # cuBLAS counts columns first: its C is the transpose of out.
        _gemm(
            (len(dense), n, k),
            (dense.data.ptr, k),
            (x.data.ptr, k),
            (out.data.ptr + first * out.itemsize, out.shape[1]),
            _TYPES[x.dtype.name],
            _TYPES[out.dtype.name],
        )


def _gemm(
    shape: tuple[int, int, int],
    a: tuple[int, int],
    b: tuple[int, int],
    c: tuple[int, int],
    dtype: int,
    out_dtype: int,
) -> None:
    """C = A^T B on CuPy's current stream; a, b, c: address and leading dimension."""
    import cupy

    library, handle = _cublas(), _handle()
    _check(library.cublasSetStream_v2(handle, cupy.cuda.get_current_stream().ptr))
    _check(library.cublasGemmEx(
        handle, _TRANSPOSE, _NO_TRANSPOSE, *shape,
        ctypes.byref(_ONE), a[0], dtype, a[1], b[0], dtype, b[1],
        ctypes.byref(_ZERO), c[0], out_dtype, c[1], _COMPUTE_FLOAT32, _DEFAULT_ALGORITHM,
    ))  # fmt: skip


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
    library.cublasGemmEx.argtypes = (
        pointer, *(integer,) * 5, pointer, *matrix, *matrix, pointer, *matrix, integer, integer,
    )  # fmt: skip
    return library


def _handle() -> int:
    """CuPy's handle of cuBLAS on the current GPU."""
    from cupy.cuda import device

    return int(device.get_cublas_handle())
