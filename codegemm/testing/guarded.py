"""Arrays between guards: bytes that nobody may write to, and that are NaN to whoever reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import devices
from codegemm.devices import Device

POISON = 0xFF  # every byte of a NaN, in all dtypes of x and y
_GUARD, _BOUNDARY = 1024, 64


def poisoned(size: int) -> npt.NDArray[np.uint8]:
    """So many bytes that make a NaN of what is computed of them."""
    return np.full(size, POISON, np.uint8)


def unwritten(shape: tuple[int, ...], dtype: np.dtype) -> npt.NDArray:
    """An array of NaNs that nothing computes, not of poison either."""
    return np.full(shape, _mark(dtype), f"u{dtype.itemsize}").view(dtype)


def is_unwritten(array: npt.NDArray) -> npt.NDArray[np.bool_]:
    """Which of its numbers are still those."""
    return np.equal(array.view(f"u{array.itemsize}"), _mark(array.dtype))


def _mark(dtype: np.dtype) -> int:
    return int(np.iinfo(f"u{dtype.itemsize}").max) - 2


class Guarded:
    """A copy of an array, on `device`, so many bytes (`shift`) behind a boundary of 64.

    array: NumPy's or CuPy's, to be read and written.
    """

    def __init__(self, content: npt.NDArray, device: Device, shift: int = 0) -> None:
        memory = devices.move(poisoned(content.nbytes + shift + _BOUNDARY + 2 * _GUARD), device)
        address = memory.ctypes.data if isinstance(memory, np.ndarray) else memory.data.ptr
        self._memory, self._begin = memory, _GUARD + (-address) % _BOUNDARY + shift
        self._end = self._begin + content.nbytes
        self.array: Any = memory[self._begin : self._end].view(content.dtype).reshape(content.shape)
        self.array[...] = devices.move(content, device)

    def host(self) -> npt.NDArray:
        """What is in it now."""
        return devices.to_host(self.array)

    def is_intact(self) -> bool:
        """Whether nobody wrote to the bytes around it."""
        memory = devices.to_host(self._memory)
        return bool((memory[: self._begin] == POISON).all() and (memory[self._end :] == POISON).all())
