"""Weights on disk: safetensors files in the package's own format, memory-mapped when read.

For a weight `<name>` a file holds `<name>.codes` (uint8 [M, ceil(K/v*m*b/8)], each row's codes in the order (k-vector,
codebook), b bits each, least significant bit first), `<name>.codebooks` and `<name>.scales`; or `<name>.qidxs`, `.SU`
and `.SV`. Its metadata says `format: codegemm`, `version: 1` and, under `<name>`, describes the weight in JSON. Any
other tensor travels along unchanged.

A weight with more around its codebooks also has `<name>.signs` (uint8 [ceil(K/8)], bit k of them, least significant
first, set for -1) where its description names a `block`, `<name>.offsets` (float16 [M, K/g]) where it says of `offsets`
that they are `scaled` or `added`; with `terms`, codes and scales are of terms * K columns. The version of a file with
such a weight is 2, for who does not know of them would multiply by another matrix.

Where columns lie in another order, the description says `ordered`, and `<name>.order` (int32 [K]) says in which. The
version of a file with such a weight is 4.

Of any other format the description says its name (`format`), the configuration's text, the shape and what its
constructor takes beside the tensors (`options`); around such a core, `core` has the core's description. Version 3.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from codegemm.devices import CPU, Device, to_host
from codegemm.errors import CheckpointError
from codegemm.files import File, RawTensor
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.e8p import E8PWeight
from codegemm.formats.format import described
from codegemm.formats.native import FORMAT, VERSION, check_name, is_native, write_weights
from codegemm.formats.transformed import TransformedWeight
from codegemm.formats.weight import Weight
from codegemm.shards import open_model

_OLDEST: tuple[type[Weight], ...] = (CodebookWeight, E8PWeight)  # whose descriptions don't say their format


def load(path: str | os.PathLike[str], name: str | None = None, *, device: Any = CPU) -> Weight:
    """The only weight of a file, or the one called `name`; of a model's folder or its index too, as `load_all`.

    device: where it is to be, as `Weight.to` takes it. On the CPU codes are memory-mapped, and read at their first use.
    """
    place = Device.parse(device)
    found = _found(path)
    if name is None:
        if len(found) != 1:
            names = list(found)
            raise CheckpointError(
                f"{path}: holds {len(names)} weights ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}); "
                "name one or use load_all"
            )
        [name] = found
    if name not in found:
        raise CheckpointError(f"{path}: no weight {name!r}; it has {', '.join(found) or 'none'}")
    file, description = found[name]
    return _read_weight(file, name, description).to(place)


def load_all(path: str | os.PathLike[str], *, device: Any = CPU) -> dict[str, Weight]:
    """Every weight by its name: of a file, of a folder with `model.safetensors` or shards, or of the shards' index.

    device: where they are to be, as `Weight.to` takes it. On the CPU codes are memory-mapped, and read at their first
        use.
    """
    place = Device.parse(device)
    return {name: _read_weight(file, name, description).to(place) for name, (file, description) in _found(path).items()}


def save_all(
    path: str | os.PathLike[str],
    weights: Mapping[str, Weight],
    tensors: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights, and any other tensors (of any library) and metadata, to one file.

    An existing file is replaced only when everything is written. Raises ValueError or TypeError for names, metadata
    and dtypes that a file can't hold, CheckpointError where writing fails.
    """
    tensors, metadata = tensors or {}, metadata or {}
    stored = {name: weight.stored() for name, weight in weights.items()}
    check_names({name: one.tensors for name, one in stored.items()}, tensors, metadata)
    others = {name: _raw(name, tensor) for name, tensor in tensors.items()}
    write_weights(path, stored, others, metadata)


def check_names(weights: Mapping[str, Iterable[str]], tensors: Iterable[str], metadata: Mapping[str, str]) -> None:
    """ValueError unless one file can hold weights, other tensors and metadata of these names.

    weights: with the names of the tensors that each has there.
    """
    tensors = set(tensors)
    for kind, names in (("weight", weights), ("tensor", tensors), ("metadata", metadata)):
        for name in names:
            check_name(kind, name)
    for name, note in metadata.items():
        if not isinstance(note, str):
            raise ValueError(f"metadata {name!r}: {note!r}, must be text")
        if name in weights:
            raise ValueError(f"metadata {name!r}: a weight has that name")
    for name, ends in weights.items():
        for taken in (f"{name}.{end}" for end in (*ends, *TransformedWeight.tensor_names)):
            if taken in tensors:
                raise ValueError(f"tensor {taken!r}: is part of a weight of that name")


def _raw(name: str, tensor: Any) -> RawTensor:
    if isinstance(tensor, RawTensor):
        return tensor
    array = to_host(tensor, name)
    try:
        return RawTensor.of(array)
    except TypeError as error:
        raise TypeError(f"tensor {name!r}: {error}") from None


def weight_names(file: File) -> set[str]:
    """Of a file in this package's format; none of a foreign one. CheckpointError for a later version."""
    return set(_descriptions(file)) if is_native(file) else set()


def _found(path: str | os.PathLike[str]) -> dict[str, tuple[File, dict[str, Any]]]:
    """Where each weight is and its description, by sorted names."""
    files = open_model(path).files
    found = {name: (file, description) for file in files for name, description in _descriptions(file).items()}
    return dict(sorted(found.items()))


def _descriptions(file: File) -> dict[str, dict[str, Any]]:
    """The description of every weight by name; CheckpointError for a foreign file or a later version."""
    if not is_native(file):
        raise CheckpointError(
            f"{file.path}: format {file.metadata.get('format')!r}, must be {FORMAT!r} "
            "(codegemm quantize makes such a file)"
        )
    version = file.metadata.get("version", "")
    if version not in map(str, range(1, VERSION + 1)):
        raise CheckpointError(f"{file.path}: version {version[:20]!r}, this package reads up to {VERSION}")
    return {name: _description(file, name) for name in _weight_names(file)}


def _weight_names(file: File) -> set[str]:
    """Names with a description or all the tensors of a weight; somebody else's `<name>.codes` is neither."""
    ends: dict[str, set[str]] = {}
    for tensor in file.tensors:
        name, _, end = tensor.rpartition(".")
        ends.setdefault(name, set()).add(end)
    return {
        name
        for name, its in ends.items()
        if any(
            set(cls.tensor_names) <= its or (name in file.metadata and cls.tensor_names[0] in its) for cls in _OLDEST
        )
        or _is_description(file.metadata.get(name, ""))
    }


def _is_description(text: str) -> bool:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "shape" in found and not found.keys().isdisjoint(("format", "codebook", "v"))


def _description(file: File, name: str) -> dict[str, Any]:
    try:
        description = json.loads(file.metadata[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.path}: {name}: its description is missing or broken ({error})") from None
    if not isinstance(description, dict):
        raise CheckpointError(f"{file.path}: {name}: its description is {description!r}, must be a JSON object")
    return description


def _read_weight(file: File, name: str, description: dict[str, Any]) -> Weight:
    """One weight; CheckpointError where its tensors don't fit its description."""
    try:
        rows, columns = description["shape"]
        kind = described(description).weight
        weight = kind.from_stored(description, lambda end: file.tensors[f"{name}.{end}"].numpy())
        if weight.shape != (rows, columns):
            raise ValueError(f"the tensors are of shape {weight.shape}, the description says {(rows, columns)}")
        return weight
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{file.path}: {name}: {what}") from None
