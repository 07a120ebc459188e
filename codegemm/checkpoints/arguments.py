"""Checks that the readers of all layouts share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import devices
from codegemm.errors import CheckpointError

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
    array = devices.to_host(values)
    if array.dtype.name not in dtypes:
        raise CheckpointError(f"{name}: dtype {array.dtype}, must be {' or '.join(dtypes)}")
    if array.ndim != axes:
        raise CheckpointError(f"{name}: shape {array.shape}, must have {axes} axes")
    return array


def exact_half(name: str, array: npt.NDArray) -> npt.NDArray[np.float16]:
    """The same values in float16; CheckpointError, naming the first place, where one is not exactly the same."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = array.astype(np.float16)
        changed = np.argwhere(rounded.astype(np.float64) != array.astype(np.float64))
    if len(changed):
        where = tuple(changed[0].tolist())
        raise CheckpointError(f"{name}: {array[where]!s} at {list(where)} is not exactly a finite float16")
    return rounded
