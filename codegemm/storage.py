"""Weights on disk: safetensors files in the package's own format, memory-mapped when read.

For a weight `<name>` a file holds `<name>.codes` (uint8 [M, ceil(K/v*m*b/8)], each row's codes in the order (k-vector,
codebook), b bits each, least significant bit first), `<name>.codebooks` and `<name>.scales`; or `<name>.qidxs`, `.SU`
and `.SV`. Its metadata says `format: codegemm`, `version: 1` and, under `<name>`, describes the weight in JSON. Any
other tensor travels along unchanged.

A weight with more around its codebooks also has `<name>.signs` (uint8 [ceil(K/8)], bit k of them, least significant
first, set for -1) where its description names a `block`, `<name>.offsets` (float16 [M, K/g]) where it says of `offsets`
that they are `scaled` or `added`; with `terms`, codes and scales are of terms * K columns. The version of a file with
such a weight is 2, for who does not know of them would multiply by another matrix.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from codegemm.config import CodebookConfig
from codegemm.errors import CheckpointError
from codegemm.formats import bits
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.e8p import E8PWeight
from codegemm.formats.extended import ExtendedSpec, ExtendedWeight
from codegemm.formats.weight import Weight

FORMAT = "codegemm"
VERSION = 2
# The tensors of a weight, by format, and what codebooks may have around them.
PARTS = (("codes", "codebooks", "scales"), ("qidxs", "SU", "SV"))
AROUND = ("signs", "offsets")
RESERVED = ("", "format", "version", "__metadata__")

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
    def is_matrix(self) -> bool:
        """Whether it is a matrix of floats that NumPy (with ml_dtypes) can read."""
        return len(self.shape) == 2 and self.dtype in ("F16", "BF16", "F32", "F64")

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    def numpy(self) -> np.ndarray:
        """The tensor as a read-only array; bfloat16 through ml_dtypes. CheckpointError for a dtype without one."""
        if self.dtype == "BF16":
            from codegemm.arrays import bfloat16

            return self.data.view(bfloat16()).reshape(self.shape)
        if self.dtype not in _DTYPES:
            raise CheckpointError(f"dtype {self.dtype}: can't be read as an array")
        return self.data.view(_DTYPES[self.dtype]).reshape(self.shape)


class File:
    """A safetensors file, validated and memory-mapped: `tensors` by name and `metadata`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        try:
            with safe_open(self.path, "numpy") as checked:
                self.metadata: dict[str, str] = checked.metadata() or {}
        except FileNotFoundError:
            raise CheckpointError(f"{self.path}: no such file") from None
        except (SafetensorError, OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.path}: not a whole safetensors file ({error})") from None
        mapped = np.memmap(self.path, np.uint8, "r").view(np.ndarray)
        start = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
        header = json.loads(mapped[8:start].tobytes())
        self.tensors = {
            name: RawTensor(
                entry["dtype"],
                tuple(entry["shape"]),
                mapped[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }

    @property
    def is_native(self) -> bool:
        """Whether the file is in this package's format (of any version)."""
        return self.metadata.get("format") == FORMAT

    def descriptions(self) -> dict[str, dict[str, Any]]:
        """The description of every weight by name; CheckpointError for a foreign file or a later version."""
        if not self.is_native:
            raise CheckpointError(
                f"{self.path}: format {self.metadata.get('format')!r}, must be {FORMAT!r} "
                "(codegemm quantize makes such a file)"
            )
        version = self.metadata.get("version", "")
        if version not in map(str, range(1, VERSION + 1)):
            raise CheckpointError(f"{self.path}: version {version[:20]!r}, this package reads up to {VERSION}")
        return {name: self._description(name) for name in sorted(self._weight_names())}

    def _weight_names(self) -> set[str]:
        """Names with a description or all the tensors of a weight; somebody else's `<name>.codes` is neither."""
        names = {name.rpartition(".")[0] for name in self.tensors if name.endswith((".codes", ".qidxs"))}
        return {
            name
            for name in names
            if name in self.metadata or any(all(f"{name}.{part}" in self.tensors for part in parts) for parts in PARTS)
        }

    def _description(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self.metadata[name])
        except (KeyError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path}: {name}: its description is missing or broken ({error})") from None
        if not isinstance(found, dict):
            raise CheckpointError(f"{self.path}: {name}: its description is {found!r}, must be a JSON object")
        return found

    def weight(self, name: str) -> Weight:
        """One weight; CheckpointError where its tensors don't fit its description."""
        described = self.descriptions()
        if name not in described:
            raise CheckpointError(f"{self.path}: no weight {name!r}; it has {', '.join(described) or 'none'}")
        try:
            return _read_weight(name, described[name], self.tensors)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"{self.path}: {name}: {what}") from None


def load(path: str | os.PathLike[str], name: str | None = None) -> Weight:
    """The only weight of a file, or the one called `name`. Codes are memory-mapped, and read at their first use."""
    file = File(path)
    names = list(file.descriptions())
    if name is None:
        if len(names) != 1:
            raise CheckpointError(
                f"{file.path}: holds {len(names)} weights ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}); "
                "name one or use load_all"
            )
        name = names[0]
    return file.weight(name)


def load_all(path: str | os.PathLike[str]) -> dict[str, Weight]:
    """Every weight of a file by name. Codes are memory-mapped, and read at their first use."""
    file = File(path)
    return {name: file.weight(name) for name in file.descriptions()}


def save_all(
    path: str | os.PathLike[str],
    weights: Mapping[str, Weight],
    tensors: Mapping[str, np.ndarray | RawTensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights, and any other tensors and metadata, to one file.

    An existing file is replaced only when everything is written. Raises ValueError or TypeError for names, metadata
    and dtypes that a file can't hold, CheckpointError where writing fails.
    """
    check_names(weights, tensors or (), metadata or {})
    out: dict[str, RawTensor] = {}
    extended = any(isinstance(weight, ExtendedWeight) for weight in weights.values())
    notes = {**(metadata or {}), "format": FORMAT, "version": str(VERSION if extended else 1)}
    for name, weight in weights.items():
        parts, description = _write_weight(weight)
        notes[name] = json.dumps(description)
        out.update({f"{name}.{part}": RawTensor.of(array) for part, array in parts.items()})
    for name, tensor in (tensors or {}).items():
        try:
            out[name] = tensor if isinstance(tensor, RawTensor) else RawTensor.of(np.asarray(tensor))
        except TypeError as error:
            raise TypeError(f"tensor {name!r}: {error}") from None
    write(path, out, notes)


def check_names(weights: Iterable[str], tensors: Iterable[str], metadata: Mapping[str, str]) -> None:
    """ValueError unless one file can hold weights, other tensors and metadata of these names."""
    weights, tensors = list(weights), set(tensors)
    for kind, names in (("weight", weights), ("tensor", tensors), ("metadata", metadata)):
        for name in names:
            reserved = RESERVED if kind != "tensor" else ("", "__metadata__")
            if not isinstance(name, str) or not name.isprintable() or name in reserved:
                raise ValueError(f"name {name!r}: can't be that of a {kind}")
    for name, note in metadata.items():
        if not isinstance(note, str):
            raise ValueError(f"metadata {name!r}: {note!r}, must be text")
        if name in weights:
            raise ValueError(f"metadata {name!r}: a weight has that name")
    for name in weights:
        for taken in (f"{name}.{part}" for parts in (*PARTS, AROUND) for part in parts):
            if taken in tensors:
                raise ValueError(f"tensor {taken!r}: is part of a weight of that name")


def write(path: str | os.PathLike[str], tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file tensor by tensor, beside its place, and rename it there."""
    # Largest elements first, as the format's own writer does, so that every tensor is aligned; of bytes those of an
    # even number, since 16-bit codes are stored as bytes.
    order = sorted(tensors, key=lambda name: (-_item_size(tensors[name]), tensors[name].data.nbytes % 2, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.data.nbytes],
        }
        offset += tensor.data.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    replace_file(path, (len(text).to_bytes(8, "little"), text, *(tensors[name].data.data for name in order)))


def replace_file(path: str | os.PathLike[str], chunks: Iterable[Any]) -> None:
    """Write bytes beside `path` and rename; CheckpointError, and `path` as it was, if that fails."""
    path = Path(os.path.realpath(path))  # a link stays one
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


def _item_size(tensor: RawTensor) -> int:
    count = prod(tensor.shape)
    return tensor.data.nbytes // count if count else 1


def _write_weight(weight: Weight) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a weight and its description."""
    weight = weight.to("cpu")
    if isinstance(weight, ExtendedWeight):
        tensors, description = _write_weight(weight.core)
        return tensors | _write_around(weight), description | _describe_around(weight.spec)
    if isinstance(weight, CodebookWeight):
        config = weight.config
        packed = bits.pack(weight.codes.reshape(len(weight.codes), -1), config.b)
        description = {
            "v": config.v, "m": config.m, "b": config.b, "g": config.g, "shape": list(weight.shape),
        }  # fmt: skip
        if weight.codebooks.ndim == 4:
            description["part_rows"] = list(weight.spec.part_rows)
        return {"codes": packed, "codebooks": weight.codebooks, "scales": weight.scales}, description
    if isinstance(weight, E8PWeight):
        return weight.arrays, {
            "codebook": "E8P", "bits": weight.bits, "resid_scale": weight.resid_scale, "shape": list(weight.shape),
        }  # fmt: skip
    raise TypeError(f"{type(weight).__name__} has no form on disk")


def _write_around(weight: ExtendedWeight) -> dict[str, np.ndarray]:
    tensors = {}
    if weight.signs is not None:
        tensors["signs"] = bits.pack(weight.signs[None] < 0, 1)[0]
    if weight.offsets is not None:
        tensors["offsets"] = weight.offsets
    return tensors


def _describe_around(spec: ExtendedSpec) -> dict[str, Any]:
    """`block` and `offsets` only where there are such; the shape is that of the whole weight."""
    around = {"block": spec.block, "offsets": spec.offsets}
    named = {name: value for name, value in around.items() if value}
    return {"shape": list(spec.shape), "terms": spec.terms} | named


def _read_weight(name: str, described: dict[str, Any], tensors: Mapping[str, RawTensor]) -> Weight:
    def tensor(part: str) -> np.ndarray:
        return tensors[f"{name}.{part}"].numpy()

    rows, columns = described["shape"]
    weight: Weight
    if "codebook" in described:
        if described["codebook"] != "E8P":
            raise ValueError(f"codebook {described['codebook']!r}, must be 'E8P'")
        weight = E8PWeight(tensor("qidxs"), tensor("SU"), tensor("SV"), described["resid_scale"])
        if weight.bits != described["bits"]:
            raise ValueError(f"qidxs are of {weight.bits} bits, the description says {described['bits']}")
    else:
        config = CodebookConfig(**{key: described[key] for key in "vmbg"})
        packed, codebooks, scales = (tensor(part) for part in ("codes", "codebooks", "scales"))
        terms, block, offsets = (described.get(name) for name in ("terms", "block", "offsets"))
        weight = core = CodebookWeight.from_packed(
            packed,
            codebooks,
            scales,
            config,
            (rows, columns * (1 if terms is None else terms)),
            described.get("part_rows"),
        )
        if offsets not in (None, "scaled", "added"):
            raise ValueError(f"offsets {offsets!r}, must be 'scaled' or 'added'")
        if terms is not None or block is not None or offsets is not None:
            weight = ExtendedWeight(
                core,
                signs=None if block is None else _read_signs(tensor("signs"), columns),
                block=block,
                offsets=tensor("offsets") if offsets else None,
                scaled=offsets == "scaled" if offsets else None,
                terms=1 if terms is None else terms,
            )
    if weight.shape != (rows, columns):
        raise ValueError(f"the tensors are of shape {weight.shape}, the description says {(rows, columns)}")
    return weight


def _read_signs(packed: np.ndarray, columns: int) -> np.ndarray:
    """int8 [K] of +-1."""
    expected = (bits.row_bytes(columns, 1),)
    if packed.dtype != np.uint8 or packed.shape != expected:
        raise ValueError(f"signs: {packed.dtype} {packed.shape}, must be uint8 {expected}")
    return 1 - 2 * bits.unpack(packed[None], columns, 1)[0].astype(np.int8)
