"""safetensors files: memory-mapped when read; written beside their place, and renamed when they are whole."""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from codegemm.arrays import bfloat16
from codegemm.errors import CheckpointError

# Of what is being written; whether its writer lives can't be asked: it may be on another machine.
_MOST_SECONDS = 24 * 3600
_MOST_HEADER = 100_000_000  # bytes that safetensors reads

# safetensors' names of the dtypes that NumPy has; tensors of any other travel as raw bytes.
_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(text): name for name, text in _DTYPES.items()}


@dataclass(frozen=True)
class RawTensor:
    """A tensor as a safetensors file holds it: its dtype's name there, its shape, its bytes (memory-mapped)."""

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> RawTensor:
        """A NumPy array as such a tensor (bfloat16 included); TypeError for a dtype that the files don't have."""
        if array.dtype.name != "bfloat16":
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        name = "BF16" if array.dtype.name == "bfloat16" else _NAMES.get(array.dtype)
        if name is None:
            raise TypeError(f"dtype {array.dtype}: must be bfloat16 or one of {', '.join(map(str, _NAMES))}")
        return cls(name, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    @property
    def nbytes(self) -> int:
        """Of its data."""
        return self.data.nbytes

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix of floats that NumPy (with ml_dtypes) can read."""
        return len(self.shape) == 2 and self.dtype in ("F16", "BF16", "F32", "F64")

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    def numpy(self) -> np.ndarray:
        """The tensor as a read-only array; bfloat16 through ml_dtypes. CheckpointError for a dtype without one."""
        if self.dtype == "BF16":
            return self.data.view(bfloat16()).reshape(self.shape)
        if self.dtype not in _DTYPES:
            raise CheckpointError(f"dtype {self.dtype}: can't be read as an array")
        return self.data.view(_DTYPES[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class UnopenedTensor:
    """The same of a file that is opened at each reading: of thousands of files not all can stay open."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    nbytes: int

    @property
    def data(self) -> np.ndarray:
        """Its bytes, read anew."""
        return np.fromfile(self.path, np.uint8, self.nbytes, offset=self.begin)


Tensor = RawTensor | UnopenedTensor


class File:
    """A safetensors file, validated and memory-mapped: `tensors` by name and `metadata`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        if os.path.isdir(self.path):
            raise CheckpointError(f"{self.path}: is a folder, must be a safetensors file")
        _check_kind(self.path)
        try:
            with self.path.open("rb"):  # whose errors tell what is not there from what may not be read
                pass
            with safe_open(self.path, "numpy") as checked:
                self.metadata: dict[str, str] = checked.metadata() or {}
        except FileNotFoundError:
            raise CheckpointError(f"{self.path}: no such file") from None
        except PermissionError as error:
            raise CheckpointError(f"{self.path}: can't be read: {error.strerror}") from None
        except (SafetensorError, OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.path}: not a whole safetensors file ({error})") from None
        mapped = np.memmap(self.path, np.uint8, "r").view(np.ndarray)
        start = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
        header = json.loads(mapped[8:start].tobytes())
        header.pop("__metadata__", None)
        self._begins = {name: start + entry["data_offsets"][0] for name, entry in header.items()}
        self.tensors = {
            name: RawTensor(
                entry["dtype"],
                tuple(entry["shape"]),
                mapped[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
            )
            for name, entry in header.items()
        }

    def unopened(self) -> dict[str, UnopenedTensor]:
        """Its tensors by name, none of which keeps the file open."""
        return {
            name: UnopenedTensor(held.dtype, held.shape, self.path, self._begins[name], held.nbytes)
            for name, held in self.tensors.items()
        }


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file tensor by tensor, beside its place, and rename it there.

    ValueError for names and metadata that are too long together; CheckpointError where writing fails.
    """
    # Largest elements first, as the format's own writer does, so that every tensor is aligned; of bytes those of an
    # even number, since 16-bit codes are stored as bytes.
    order = sorted(tensors, key=lambda name: (-_item_size(tensors[name]), tensors[name].nbytes % 2, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    if len(text) > _MOST_HEADER:
        raise ValueError(f"{path}: names and metadata of {len(text):,} bytes, a file holds up to {_MOST_HEADER:,}")
    text += b" " * (-len(text) % 8)
    start = (len(text).to_bytes(8, "little"), text)
    replace_file(path, chain(start, (tensors[name].data.data for name in order)))


def check_writable(path: str | os.PathLike[str]) -> None:
    """CheckpointError for a file that can't be made where it is to be."""
    if os.path.isdir(path):
        raise CheckpointError(f"{path}: is a folder")
    _check_kind(path)
    check_folder_of(path)


def check_folder_of(path: str | os.PathLike[str]) -> None:
    """CheckpointError where nothing can be made in the folder in which a file or folder is to be."""
    path = Path(path)
    if not os.path.isdir(path.parent):
        raise CheckpointError(f"{path}: there is no folder {path.parent}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CheckpointError(f"{path}: can't be written to: {error.strerror}") from None


def same(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether both name one file or folder that is there, by links of any kind too."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def replace_file(path: str | os.PathLike[str], chunks: Iterable[Any]) -> None:
    """Write bytes beside `path` and rename; CheckpointError, and `path` as it was, if that fails.

    What a process that was killed had begun to write there goes a day later.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    _check_kind(path)
    _remove_leftovers(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with temporary.open("xb") as file:
            if path.exists():
                temporary.chmod(path.stat().st_mode & 0o777)
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _check_kind(path: str | os.PathLike[str]) -> None:
    """CheckpointError for a device, a pipe or a socket, which a file would take the place of."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise CheckpointError(f"{path}: is no regular file")


def is_left(state: os.stat_result) -> bool:
    """Whether what was begun is the user's own, and older than anything takes to be written."""
    return state.st_uid == os.getuid() and time.time() - state.st_mtime > _MOST_SECONDS


def _remove_leftovers(path: Path) -> None:
    """Of writers to this path that were killed."""
    begun = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}")
    with suppress(OSError):
        for other in path.parent.iterdir():
            if begun.fullmatch(other.name) and is_left(other.lstat()):
                other.unlink()


def _item_size(tensor: Tensor) -> int:
    count = prod(tensor.shape)
    return tensor.nbytes // count if count else 1
