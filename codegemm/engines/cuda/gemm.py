"""The library's dense product (cuBLAS through CuPy), into columns of an output and without an allocation."""

from __future__ import annotations

from typing import Any

import numpy as np

from codegemm.engines.cuda import tensors

# cudaDataType, and cuBLAS's names for what is used of it.
_TYPES = {"float16": 2, "bfloat16": 14, "float32": 0}
_NO_TRANSPOSE, _TRANSPOSE = 0, 1
_COMPUTE_FLOAT32, _DEFAULT_ALGORITHM = 68, -1
_ONE, _ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


def multiply(x: Any, dense: Any, out: Any, first: int = 0, stream: Any = None) -> None:
    """out[:, first : first + rows] = x @ dense^T, summed in float32.

    x: [n, K]. dense: [rows, K] of x's dtype (float16, bfloat16 or float32). out: [n, M], of x's dtype or float32.
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
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    cublas.gemmEx(
        device.get_cublas_handle(), _TRANSPOSE, _NO_TRANSPOSE, *shape,
        _ONE.ctypes.data, a[0], dtype, a[1], b[0], dtype, b[1],
        _ZERO.ctypes.data, c[0], out_dtype, c[1], _COMPUTE_FLOAT32, _DEFAULT_ALGORITHM,
    )  # fmt: skip
