"""Packing of b-bit codes into bytes: least significant bit first, each row padded to a byte."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_TOGETHER = 8  # codes that are packed at once: they are b whole bytes
_WORD = 64


def row_bytes(codes_per_row: int, b: int) -> int:
    """Bytes of one packed row."""
    return -(-codes_per_row * b // 8)


def code_dtype(b: int) -> np.dtype:
    """The unsigned integer that holds one unpacked code: uint8 up to 8 bits, uint16 up to 16."""
    return np.dtype(np.uint8 if b <= 8 else np.uint16)


def pack(codes: npt.NDArray, b: int) -> npt.NDArray[np.uint8]:
    """Pack codes [rows, n] of b bits into uint8 [rows, ceil(n * b / 8)]."""
    rows, count = codes.shape
    container = code_dtype(b).newbyteorder("<")
    if b in (8, 16):
        return np.ascontiguousarray(codes, container).view(np.uint8).reshape(rows, -1)
    words = _whole(codes, container, _TOGETHER).view("<u8")
    for width, used, low in _steps(b):
        words = words & low | words >> np.uint64(width - used) & low << np.uint64(used)
    if b > 8:  # two words for eight codes, half full each
        half, first, second = 4 * b, words[:, ::2], words[:, 1::2]
        merged = first | second << np.uint64(half), second >> np.uint64(_WORD - half)
        words = np.stack(merged, axis=-1)
    packed = words.view(np.uint8).reshape(rows, -1, _TOGETHER * container.itemsize)[..., :b].reshape(rows, -1)
    return np.ascontiguousarray(packed[:, : row_bytes(count, b)])


def unpack(packed: npt.NDArray[np.uint8], codes_per_row: int, b: int) -> npt.NDArray:
    """The inverse of `pack`: codes [rows, codes_per_row]; a view of `packed` where b is 8 or 16."""
    rows, container = len(packed), code_dtype(b).newbyteorder("<")
    if b in (8, 16):
        return packed.view(container).reshape(rows, codes_per_row)
    groups = _whole(packed[:, : row_bytes(codes_per_row, b)], np.dtype(np.uint8), b).reshape(rows, -1, b)
    spread = np.zeros((rows, groups.shape[1], _TOGETHER * container.itemsize), np.uint8)
    spread[..., :b] = groups
    words = spread.reshape(rows, -1).view("<u8")
    if b > 8:
        half, first, second = 4 * b, words[:, ::2], words[:, 1::2]
        split = first, first >> np.uint64(half) | second << np.uint64(_WORD - half)
        words = np.stack(split, axis=-1).reshape(rows, -1)
    for width, used, low in reversed(list(_steps(b))):
        words = words & low | (words & low << np.uint64(used)) << np.uint64(width - used)
    return np.ascontiguousarray(words.view(container)[:, :codes_per_row], code_dtype(b))


def _whole(values: npt.NDArray, dtype: np.dtype, multiple: int) -> npt.NDArray:
    """Rows of these values with zeros up to a multiple."""
    rows, count = values.shape
    whole = np.zeros((rows, -(-count // multiple) * multiple), dtype)
    whole[:, :count] = values
    return whole


def _steps(b: int) -> Iterator[tuple[int, int, np.uint64]]:
    """How codes of a word move together, two neighbours at a time: the bits of a field, those of them that are used,
    and a mask of the used ones of every other field."""
    width, used = 8 * code_dtype(b).itemsize, b
    while width < _WORD:
        yield width, used, np.uint64(sum(((1 << used) - 1) << place for place in range(0, _WORD, 2 * width)))
        width, used = 2 * width, 2 * used
