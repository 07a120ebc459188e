"""Checks that the readers of all layouts share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import devices
from codegemm.errors import CheckpointError
from codegemm.formats.bits import code_dtype

FLOATS = ("float16", "bfloat16", "float32")


@contextmanager
def refusing() -> Iterator[None]:
    """What a weight's class refuses is a CheckpointError."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def as_array(name: str, values: Any, dtypes: tuple[str, ...], axes: int) -> npt.NDArray:
    """`values` as a NumPy array of one of `dtypes` with that many axes; CheckpointError names what is wrong."""
    array = devices.to_host(values, name)
    if array.dtype.name not in dtypes:
        raise CheckpointError(f"{name}: dtype {array.dtype}, must be {' or '.join(dtypes)}")
    if array.ndim != axes:
        raise CheckpointError(f"{name}: shape {array.shape}, must have {axes} axes")
    return array


def number(name: str, value: Any) -> float:
    """`value`, of any library, as a finite float; CheckpointError for what is none."""
    array = devices.to_host(value, name) if hasattr(value, "dtype") else value
    try:
        found = float(array)
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if not isfinite(found) or isinstance(value, str):
        raise CheckpointError(f"{name}={value!r}: must be a finite number")
    return found


def as_codes(codes: npt.NDArray, b: int) -> npt.NDArray:
    """Codes of b bits as unsigned integers, of such as were stored wrapped, -2**(b-1) .. 2**b - 1."""
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    if low < -(1 << b - 1) or high >> b:
        raise CheckpointError(f"codes: {low} to {high}, must be from {-(1 << b - 1)} to {(1 << b) - 1} for b={b}")
    return (codes.astype(np.int32) & (1 << b) - 1).astype(code_dtype(b))


def vector(name: str, values: Any) -> npt.NDArray:
    """`values` with one axis, float16 as they are and other floats as float32; CheckpointError where they don't fit."""
    array = as_array(name, values, (*FLOATS, "float64"), 1)
    return array if array.dtype == np.float16 else single(name, array)


def single(name: str, values: npt.NDArray) -> npt.NDArray[np.float32]:
    """As float32; CheckpointError where that is too small or too large for one of them."""
    exact = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        single = exact.astype(np.float32)
        wrong = np.flatnonzero(~(abs(single - exact) <= 2.0**-24 * abs(exact)))
    if len(wrong):
        raise CheckpointError(f"{name}: {exact[wrong[0]]:.8g} at {wrong[0]} is not near a finite, normal float32")
    return single
