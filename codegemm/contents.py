"""Which quantised weights a model's files hold: where their tensors are and what describes them, before any is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from codegemm.errors import CheckpointError
from codegemm.files import File, RawTensor
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.e8p import E8PWeight
from codegemm.formats.format import described
from codegemm.formats.native import ENTRY, FORMAT, VERSION, holds_weights, is_native
from codegemm.formats.weight import Weight
from codegemm.shards import Model, few, quantization_config

_OLDEST: tuple[type[Weight], ...] = (CodebookWeight, E8PWeight)  # whose descriptions don't say their format

Description = dict[str, Any]


class Held(NamedTuple):
    """A weight in files. path: of the file or folder, for messages; tensors: by their whole names, among others."""

    path: Path
    description: Description
    tensors: Mapping[str, RawTensor]


def is_quantised(model: Model) -> bool:
    """Whether any of its files is this package's or describes its weights.

    CheckpointError where config.json says that they are this package's, and nothing describes them.
    """
    if any(map(holds_weights, model.files)):
        return True
    if model.folder is not None and _says_ours(model.folder):
        raise CheckpointError(
            f"{model.path}: its config.json says {FORMAT}, but its files lack the metadata {ENTRY!r}, which some tool "
            "dropped: take them as they were, or load them by codegemm.hf and save_pretrained"
        )
    return False


def _says_ours(folder: Path) -> bool:
    """Whether a model's config.json does; one that can't be read says nothing."""
    try:
        return (quantization_config(folder) or {}).get("quant_method") == FORMAT
    except CheckpointError:
        return False


def weight_names(model: Model) -> set[str]:
    """Of a model's quantised weights; none of a foreign one. Raises as `held_weights` does."""
    return set(held_weights(model)) if is_quantised(model) else set()


def held_weights(model: Model) -> dict[str, Held]:
    """A model's weights by sorted names.

    CheckpointError for files without any, of a later version or with a broken description, and where a folder lacks
    some of a weight's tensors. A shard that is opened by itself has the weights that are whole in it.
    """
    if not is_quantised(model):
        file = model.files[0]
        raise CheckpointError(
            f"{file.path}: format {file.metadata.get('format')!r}, must be {FORMAT!r} "
            "(codegemm quantize makes such a file)"
        )
    beside = _of_all_files(model)
    found = {name: Held(model.path, description, model.tensors) for name, description in beside.items()}
    for file in filter(is_native, model.files):
        found |= {name: Held(file.path, its, file.tensors) for name, its in _native(file, beside).items()}
    return dict(sorted(found.items()))


def _of_all_files(model: Model) -> dict[str, Description]:
    """What the files that say `format: pt` describe, in the same or in other shards, as far as it is there."""
    found: dict[str, Description] = {}
    for file in model.files:
        for name, description in _entry(file).items():
            if found.setdefault(name, description) != description:
                raise CheckpointError(f"{file.path}: {name}: another shard describes it otherwise")
    return {name: description for name, description in found.items() if _is_whole(model, name, description)}


def _is_whole(model: Model, name: str, description: Description) -> bool:
    """Whether all tensors of a weight are there; CheckpointError where a folder has only some."""
    try:
        needed = [f"{name}.{end}" for end in described(description).weight.tensors_of(description)]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{model.path}: {name}: its description is broken ({error})") from None
    missing = [tensor for tensor in needed if tensor not in model.tensors]
    if model.folder is not None and 0 < len(missing) < len(needed):
        raise CheckpointError(f"{model.path}: {name}: {few(missing)} {'are' if missing[1:] else 'is'} missing")
    return not missing


def _entry(file: File) -> dict[str, Description]:
    """The descriptions in the entry of its metadata that `hf_metadata` makes."""
    text = file.metadata.get(ENTRY)
    if text is None or (is_native(file) and _is_description(text)):  # of a weight that has this name
        return {}
    try:
        said = json.loads(text)
        version, weights = said["version"], said["weights"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{file.path}: metadata {ENTRY!r} is broken ({type(error).__name__}: {error}), must be JSON: "
            '{"version": number, "weights": {name: description}}'
        ) from None
    _check_version(file, version, range(1, VERSION + 1))
    if not isinstance(weights, dict):
        raise CheckpointError(f"{file.path}: metadata {ENTRY!r}: weights {weights!r}, must be a JSON object")
    for name, description in weights.items():
        _check_object(file, name, description)
    return weights


def _native(file: File, beside: Iterable[str]) -> dict[str, Description]:
    """The description of every weight of a file of this package's own; beside: the names of those described otherwise.

    CheckpointError for a later version.
    """
    _check_version(file, file.metadata.get("version", ""), map(str, range(1, VERSION + 1)))
    return {name: _description(file, name) for name in _native_names(file) if name not in beside}


def _check_version(file: File, version: Any, known: Iterable[Any]) -> None:
    if version not in known:
        shown = version[:20] if isinstance(version, str) else version
        raise CheckpointError(f"{file.path}: version {shown!r}, this package reads up to {VERSION}")


def _native_names(file: File) -> set[str]:
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


def _description(file: File, name: str) -> Description:
    try:
        description = json.loads(file.metadata[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.path}: {name}: its description is missing or broken ({error})") from None
    _check_object(file, name, description)
    return dict(description)


def _check_object(file: File, name: str, description: Any) -> None:
    if not isinstance(description, dict):
        raise CheckpointError(f"{file.path}: {name}: its description is {description!r}, must be a JSON object")
