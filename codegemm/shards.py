"""A model's safetensors files: a single one, or the shards of a Hugging Face folder, which an index names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from codegemm.errors import CheckpointError
from codegemm.files import File, RawTensor, replace_file

INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
_NAMED = 3  # tensors, where many contradict an index


@dataclass(frozen=True)
class Model:
    """The files that hold a model, in the order of their names.

    path: as it was named. folder: theirs, None for a file that was named itself. index: the path of theirs, None for
    a single file; index_metadata: what it says beside where tensors are.
    """

    path: Path
    files: tuple[File, ...]
    folder: Path | None = None
    index: Path | None = None
    index_metadata: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def tensors(self) -> dict[str, RawTensor]:
        """Those of all files by name."""
        return {name: held for file in self.files for name, held in file.tensors.items()}

    @property
    def paths(self) -> list[Path]:
        """Of all files, the index included."""
        return [file.path for file in self.files] + ([] if self.index is None else [self.index])

    @property
    def nbytes(self) -> int:
        """Of all files of tensors."""
        return sum(file.path.stat().st_size for file in self.files)


def open_model(path: str | os.PathLike[str]) -> Model:
    """The model of a safetensors file, of a folder or of an index (a file whose name ends in `.json`).

    CheckpointError for files that are not there or broken, and where an index and its shards contradict each other.
    """
    path = Path(path)
    if os.path.isdir(path):
        index, single = path / INDEX, path / SINGLE
        if index.exists():
            model = _sharded(path, index)
            if single.exists() and single not in model.paths:
                raise CheckpointError(f"{path}: holds both {INDEX} and {SINGLE}: name the one that is meant")
            return model
        if single.exists():
            return Model(path, (File(single),), path)
        raise CheckpointError(f"{path}: holds neither {SINGLE} nor {INDEX}")
    return _sharded(path, path) if path.suffix == ".json" else Model(path, (File(path),))


def write_index(path: Path, files: Iterable[File], metadata: Mapping[str, Any]) -> None:
    """Write the index of shards that lie beside it; metadata: to which their tensors' total bytes are added."""
    shards = list(files)
    placed = {name: file.path.name for file in shards for name in file.tensors}
    total = sum(held.nbytes for file in shards for held in file.tensors.values())
    index = {"metadata": {**metadata, "total_size": total}, "weight_map": dict(sorted(placed.items()))}
    replace_file(path, [json.dumps(index, indent=2).encode() + b"\n"])


def read_config(folder: Path) -> dict[str, Any] | None:
    """A model's config.json, None where there is none; CheckpointError for one that is no JSON object."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: can't be read ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: must be a JSON object")
    return config


def quantization_config(folder: Path) -> dict[str, Any] | None:
    """What config.json says of how a model is quantised, None where it says nothing."""
    said = (read_config(folder) or {}).get("quantization_config")
    if said is not None and not isinstance(said, dict):
        raise CheckpointError(f"{folder / CONFIG}: quantization_config must be a JSON object")
    return said


def _sharded(path: Path, index: Path) -> Model:
    try:
        said = json.loads(index.read_bytes())
        placed, metadata = said["weight_map"], said.get("metadata") or {}
    except FileNotFoundError:
        raise CheckpointError(f"{index}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not an index of shards ({type(error).__name__}: {error})") from None
    if not isinstance(placed, dict) or not isinstance(metadata, dict) or not placed:
        raise CheckpointError(f"{index}: not an index of shards: weight_map must name the shard of each tensor")
    for shard in placed.values():
        if not isinstance(shard, str) or not shard.isprintable() or shard in ("", ".", "..") or "/" in shard:
            raise CheckpointError(f"{index}: shard {shard!r}: must be the name of a file in the index's folder")
    names = sorted(set(placed.values()))
    missing = [name for name in names if not os.path.isfile(index.parent / name)]
    if missing:
        raise CheckpointError(f"{index}: names {few(missing)}, which {'are' if missing[1:] else 'is'} not there")
    files = tuple(File(index.parent / name) for name in names)
    _check(index, placed, files)
    return Model(path, files, index.parent, index, metadata)


def _check(index: Path, placed: Mapping[str, str], files: Iterable[File]) -> None:
    """CheckpointError unless each tensor is where the index says, and nowhere else."""
    listed: dict[str, set[str]] = {}
    for tensor, shard in placed.items():
        listed.setdefault(shard, set()).add(tensor)
    for file in files:
        shard, held = file.path.name, file.tensors.keys()
        lacking, more = sorted(listed[shard] - held), sorted(held - listed[shard])
        if lacking:
            raise CheckpointError(f"{index}: says that {few(lacking)} is in {shard}, which lacks it")
        if more:
            places = ", ".join(sorted({placed.get(tensor, "nowhere") for tensor in more}))
            raise CheckpointError(f"{index}: {shard} holds {few(more)}, the index says {places}")


def few(names: Sequence[str], most: int = _NAMED) -> str:
    """The first of them, for a message."""
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)
