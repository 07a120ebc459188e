"""The package's own files: what a weight is there, and how weights are written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from codegemm.files import File, RawTensor, Tensor, UnopenedTensor, write

FORMAT = "codegemm"
VERSION = 4
ENTRY = "codegemm"  # of metadata in files that say `format: pt`
RESERVED = ("", "format", "version", "__metadata__")


@dataclass(frozen=True)
class Stored:
    """A weight as a file holds it: tensors by the end of their name, what JSON says of them, the format's version."""

    tensors: dict[str, np.ndarray | UnopenedTensor]
    description: dict[str, Any]
    version: int = 3


def write_weights(
    path: str | os.PathLike[str],
    weights: Mapping[str, Stored],
    tensors: Mapping[str, RawTensor],
    metadata: Mapping[str, str],
    version: int = 1,
) -> None:
    """Write weights, other tensors and metadata to one file.

    Its version is the least that has all of these weights, and at least `version`. ValueError where tensors' names
    collide; CheckpointError, and `path` as it was, if writing fails.
    """
    version = max([version, *(one.version for one in weights.values())])
    described = {name: json.dumps(one.description) for name, one in weights.items()}
    metadata = {**metadata, "format": FORMAT, "version": str(version), **described}
    write(path, _named(weights, tensors), metadata)


def write_hf_weights(
    path: str | os.PathLike[str],
    weights: Mapping[str, Stored],
    tensors: Mapping[str, RawTensor],
    metadata: Mapping[str, str],
) -> None:
    """The same to a file that says `format: pt`."""
    write(path, _named(weights, tensors), {**metadata, "format": "pt", **hf_metadata(weights)})


def _named(weights: Mapping[str, Stored], tensors: Mapping[str, RawTensor]) -> dict[str, Tensor]:
    """All tensors of a file; ValueError where names collide."""
    out: dict[str, Tensor] = {
        f"{name}.{end}": array if isinstance(array, UnopenedTensor) else RawTensor.of(array)
        for name, one in weights.items()
        for end, array in one.tensors.items()
    }
    if len(out.keys() | tensors.keys()) < sum(len(one.tensors) for one in weights.values()) + len(tensors):
        raise ValueError(f"weights {', '.join(map(repr, weights))}: some of their tensors have the same name")
    return {**out, **tensors}


def read_stored(path: str | os.PathLike[str], name: str) -> Stored:
    """A weight of a file of this package's, whose tensors are read when they are written, each time anew.

    CheckpointError, KeyError or ValueError where there is none.
    """
    file, begin = File(path), f"{name}."
    tensors = {tensor.removeprefix(begin): held for tensor, held in file.unopened().items() if tensor.startswith(begin)}
    return Stored({**tensors}, json.loads(file.metadata[name]), int(file.metadata["version"]))


def hf_metadata(weights: Mapping[str, Stored]) -> dict[str, str]:
    """What files that say `format: pt` have in their metadata beside it: descriptions of these weights.

    Those of a whole model may be in each of its shards.
    """
    version = max((one.version for one in weights.values()), default=1)
    described = {name: one.description for name, one in weights.items()}
    return {ENTRY: json.dumps({"version": version, "weights": described})}


def holds_weights(file: File) -> bool:
    """Whether the file is in this package's format, or its metadata describes weights of it."""
    return is_native(file) or ENTRY in file.metadata


def is_native(file: File) -> bool:
    """Whether the file is in this package's format (of any version)."""
    return file.metadata.get("format") == FORMAT


def check_name(kind: str, name: str) -> None:
    """ValueError unless a weight, a tensor or an entry of metadata, as `kind` says, can have this name."""
    reserved = RESERVED if kind != "tensor" else ("", "__metadata__")
    if not isinstance(name, str) or not name.isprintable() or name in reserved:
        raise ValueError(f"name {name!r}: can't be that of a {kind}")
