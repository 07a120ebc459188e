"""Packing of b-bit codes into bytes: least significant bit first, each row padded to a byte."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def row_bytes(codes_per_row: int, b: int) -> int:
    """Bytes of one packed row."""
    return -(-codes_per_row * b // 8)


def code_dtype(b: int) -> np.dtype:
    """The unsigned integer that holds one unpacked code: uint8 up to 8 bits, uint16 up to 16."""
    return np.dtype(np.uint8 if b <= 8 else np.uint16)


def pack(codes: npt.NDArray, b: int) -> npt.NDArray[np.uint8]:
    """Pack codes [rows, n] of b bits into uint8 [rows, ceil(n * b / 8)]."""
    codes = np.ascontiguousarray(codes)
    if b in (8, 16):
        little = codes.astype(f"<u{b // 8}", copy=False)
        return little.view(np.uint8).reshape(len(codes), -1)
    container = code_dtype(b).newbyteorder("<")
    as_bytes = codes.astype(container, copy=False)[..., None].view(np.uint8)
    bits = np.unpackbits(as_bytes, axis=-1, bitorder="little")[..., :b]
    return np.packbits(bits.reshape(len(codes), -1), axis=-1, bitorder="little")


def unpack(packed: npt.NDArray[np.uint8], codes_per_row: int, b: int) -> npt.NDArray:
    """The inverse of `pack`: codes [rows, codes_per_row]; a view of `packed` where b is 8 or 16."""
    if b in (8, 16):
        return packed.view(f"<u{b // 8}").reshape(len(packed), codes_per_row)
    container = code_dtype(b)
    bits = np.unpackbits(packed, axis=-1, bitorder="little", count=codes_per_row * b)
    codes = np.packbits(bits.reshape(len(packed), codes_per_row, b), axis=-1, bitorder="little")
    if container == np.uint16:
        codes = codes.view("<u2")
    return codes.reshape(len(packed), codes_per_row).astype(container, copy=False)
