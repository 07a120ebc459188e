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

A file that says `format: pt`, as Hugging Face's libraries write and read, holds weights by the same tensors. Its
metadata `codegemm` is JSON, `{"version": number, "weights": {name: description}}`; of a sharded model each file may
describe all weights, whose tensors may be apart.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from codegemm.contents import Held, held_weights
from codegemm.counts import count
from codegemm.devices import CPU, Device, to_host
from codegemm.errors import CheckpointError
from codegemm.files import RawTensor
from codegemm.formats.format import described
from codegemm.formats.native import check_name, write_weights
from codegemm.formats.transformed import TransformedWeight
from codegemm.formats.weight import Weight
from codegemm.shards import open_model


def load(path: str | os.PathLike[str], name: str | None = None, *, device: Any = CPU) -> Weight:
    """The only weight of a file, or the one called `name`; of a model's folder or its index too, as `load_all`.

    device: where it is to be, as `Weight.to` takes it. On the CPU codes are memory-mapped, and read at their first use.
    """
    place = Device.parse(device)
    found = held_weights(open_model(path))
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
    return _read_weight(name, found[name]).to(place)


def load_all(path: str | os.PathLike[str], *, device: Any = CPU) -> dict[str, Weight]:
    """Every weight by its name: of a file, of a folder with `model.safetensors` or shards, or of the shards' index.

    device: where they are to be, as `Weight.to` takes it. On the CPU codes are memory-mapped, and read at their first
        use.
    """
    place = Device.parse(device)
    return {name: _read_weight(name, held).to(place) for name, held in held_weights(open_model(path)).items()}


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
    for name, weight in weights.items():
        if not isinstance(weight, Weight):
            raise TypeError(f"weight {name!r}: {type(weight).__name__}, must be a quantised weight")
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
        _check_encodes(name, note)
        if name in weights:
            raise ValueError(f"metadata {name!r}: a weight has that name")
    for name, ends in weights.items():
        for taken in (f"{name}.{end}" for end in (*ends, *TransformedWeight.tensor_names)):
            if taken in tensors:
                raise ValueError(f"tensor {taken!r}: is part of a weight of that name")


def _check_encodes(name: str, note: str) -> None:
    try:
        note.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"metadata {name!r}: {note[error.start]!r}, must be text that UTF-8 holds") from None


def _raw(name: str, tensor: Any) -> RawTensor:
    if isinstance(tensor, RawTensor):
        return tensor
    array = to_host(tensor, name)
    try:
        return RawTensor.of(array)
    except TypeError as error:
        raise TypeError(f"tensor {name!r}: {error}") from None


def _read_weight(name: str, held: Held) -> Weight:
    """One weight; CheckpointError where its tensors don't fit its description."""
    try:
        rows, columns = (count("shape", each) for each in held.description["shape"])
        kind = described(held.description).weight
        weight = kind.from_stored(held.description, lambda end: held.tensors[f"{name}.{end}"].numpy())
        if weight.shape != (rows, columns):
            raise ValueError(f"the tensors are of shape {weight.shape}, the description says {(rows, columns)}")
        return weight
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{held.path}: {name}: {what}") from None
