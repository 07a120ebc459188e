"""A Hugging Face folder of another project's weights as one of this package's."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegemm import model_config
from codegemm.checkpoints.readers import READERS, Checkpoint, Layer
from codegemm.destination import destination
from codegemm.errors import CheckpointError
from codegemm.files import File
from codegemm.formats.native import FORMAT, Stored, read_stored, write_hf_weights, write_weights
from codegemm.model_card import with_note
from codegemm.shards import CONFIG, Model, open_model, quantization_config, read_config

_PICKLES = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True)
class ConvertedFolder:
    """What became of a folder, and the bytes of its files with tensors before and after.

    converted: the weights' configurations by their names. copied: the other tensors. left_out: files with weights in
    other forms, which were not copied.
    """

    converted: dict[str, str]
    copied: tuple[str, ...]
    left_out: tuple[str, ...]
    source_bytes: int
    target_bytes: int


def convert_folder(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, force: bool = False
) -> ConvertedFolder:
    """Write a Hugging Face folder of AQLM's weights as one that `codegemm.load_all` reads, and transformers with it.

    source: a folder with config.json, whose quantization_config is `aqlm`'s, and safetensors files, shards or not.
    target: a folder with files of the same names. Of an AQLM layer the codes' file has all tensors; its bias, all other
        tensors and files are copied, hidden ones and weights in other forms aside. In config.json the
        quantization_config is another, the rest is as it was; README.md says how the layers are loaded.
    force: replace an existing target, once all is written, if it holds no more than a model.

    Numbers that float16 doesn't hold are rounded as `from_aqlm` does. One layer at a time is in memory. Raises
    CheckpointError, and leaves the target as it was, for a folder of another kind, files that can't be read or written,
    layers that lack tensors or whose shapes contradict config.json, and numbers that won't do.
    """
    folder = Path(source)
    said, config = _said(folder)
    model = _open(folder)
    checkpoint = READERS[said["quant_method"]](said, model)
    if not checkpoint.layers:
        raise CheckpointError(f"{folder}: none of its tensors are of a quantised layer")
    place, entry = destination(model, Path(target), [], force), _entry(checkpoint, model)
    place.write(
        place.path.parent / f".{place.path.name}.converted",
        lambda file, path: _write(file, path, checkpoint),
        {CONFIG: model_config.content(config, entry), **with_note(folder, entry["config"])},
    )
    taken = {tensor for layer in checkpoint.layers.values() for tensor in layer.tensors}
    return ConvertedFolder(
        {name: layer.config for name, layer in checkpoint.layers.items()},
        tuple(tensor for tensor in model.tensors if tensor not in taken),
        place.left_out,
        model.nbytes,
        sum(path.stat().st_size for path in place.paths),
    )


def _said(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The quantization_config, of a method that can be read, and all of config.json."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: must be a folder with {CONFIG} and safetensors files")
    config, said = read_config(folder), quantization_config(folder)
    if config is None:
        raise CheckpointError(f"{folder}: holds no {CONFIG}")
    readable = f"can be read: {', '.join(READERS)}"
    if said is None:
        raise CheckpointError(f"{folder / CONFIG}: has no quantization_config; {readable}")
    method = said.get("quant_method")
    if method == FORMAT:
        raise CheckpointError(f"{folder / CONFIG}: quant_method {FORMAT!r}: it is converted already")
    if not isinstance(method, str) or method not in READERS:
        raise CheckpointError(f"{folder / CONFIG}: quant_method {method!r}; {readable}")
    return said, config


def _open(folder: Path) -> Model:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles and not any(folder.glob("*.safetensors*")):
        raise CheckpointError(f"{folder}: holds {pickles[0]}, a pickle; the weights must be in safetensors files")
    return open_model(folder)


def _entry(checkpoint: Checkpoint, model: Model) -> dict[str, Any]:
    """The new quantization_config."""
    configs = {name: layer.config for name, layer in checkpoint.layers.items()}
    [(usual, _)] = Counter(configs.values()).most_common(1)
    dense = list(checkpoint.dense)
    if "lm_head.weight" in model.tensors and "lm_head" not in dense:
        dense.append("lm_head")
    return model_config.entry(usual, {name: each for name, each in configs.items() if each != usual}, dense)


def _write(file: File, path: Path, checkpoint: Checkpoint) -> None:
    """What becomes of one file: each weight is made, and kept beside it until all are written together."""
    layers = {name: layer for name, layer in checkpoint.layers.items() if layer.tensors[0] in file.tensors}
    taken = {tensor for layer in checkpoint.layers.values() for tensor in layer.tensors}
    others = {name: held for name, held in file.tensors.items() if name not in taken}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as parts:
        weights = {
            name: _made(file, name, layer, Path(parts) / f"{number}.safetensors")
            for number, (name, layer) in enumerate(layers.items())
        }
        write_hf_weights(path, weights, others, file.metadata)


def _made(file: File, name: str, layer: Layer, path: Path) -> Stored:
    """A weight, written to `path` and no more in memory."""
    try:
        weight = layer.read()
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {name}.{error}") from None
    write_weights(path, {name: weight.stored()}, {}, {})
    return read_stored(path, name)
