"""The layers of other projects' Hugging Face folders: a reader for each `quant_method` of their config.json.

A reader looks at names, dtypes and shapes alone; a layer's numbers are read when it is converted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegemm.checkpoints.additive import from_aqlm
from codegemm.errors import CheckpointError
from codegemm.files import RawTensor
from codegemm.formats.codebook_config import CodebookConfig
from codegemm.formats.weight import Weight
from codegemm.shards import CONFIG, Model


@dataclass(frozen=True)
class Layer:
    """A quantised layer. tensors: its tensors' whole names; of the first's file the weight becomes a part.

    config: what the weight's spec will be called. read: makes the weight; CheckpointError where its numbers won't do.
    """

    tensors: tuple[str, ...]
    config: str
    read: Callable[[], Weight]


@dataclass(frozen=True)
class Checkpoint:
    """A model's quantised layers by name, and the modules that config.json says are dense."""

    layers: Mapping[str, Layer]
    dense: tuple[str, ...]


def aqlm_config(said: Mapping[str, Any], where: Path | str) -> tuple[CodebookConfig, tuple[str, ...]]:
    """What AQLM's quantization_config says: the configuration of all quantised layers, and the modules that are dense.

    where: the file, for messages. CheckpointError for what can't be.
    """
    if (rows := _integer(where, said, "out_group_size")) != 1:
        raise CheckpointError(
            f"{where}: quantization_config: out_group_size {rows}, must be 1: the kernels take codes of one row each"
        )
    keys = {"v": "in_group_size", "m": "num_codebooks", "b": "nbits_per_codebook"}
    v, m, b = (_integer(where, said, key) for key in keys.values())
    try:
        config = CodebookConfig(v=v, m=m, b=b)
    except ValueError as error:
        told = ", ".join(f"{field} is {key}" for field, key in keys.items())
        raise CheckpointError(f"{where}: quantization_config: {error} ({told})") from None
    dense = [] if (listed := said.get("linear_weights_not_to_quantize")) is None else listed
    if not isinstance(dense, list) or not all(isinstance(name, str) for name in dense):
        raise CheckpointError(f"{where}: linear_weights_not_to_quantize {dense!r}, must be a list of names")
    return config, tuple(name.removesuffix(".weight") for name in dense)


def read_aqlm(said: Mapping[str, Any], model: Model) -> Checkpoint:
    """AQLM's. said: the quantization_config; CheckpointError for what it or the tensors can't be."""
    config, dense = aqlm_config(said, model.paths[0].parent / CONFIG)
    names = sorted({name.rpartition(".")[0] for name in model.tensors if name.endswith((".codes", ".codebooks"))})
    for entry in dense:
        if quantised := [name for name in names if f".{entry}." in f".{name}."]:
            raise CheckpointError(
                f"{model.paths[0].parent / CONFIG}: linear_weights_not_to_quantize names {entry!r}, and the files hold "
                f"{quantised[0]}.codes"
            )
    return Checkpoint({name: _aqlm_layer(name, config, model) for name in names}, dense)


_FLOATS = ("F16", "BF16", "F32")

# By what config.json calls them; another project's reader joins here.
READERS: dict[str, Callable[[Mapping[str, Any], Model], Checkpoint]] = {"aqlm": read_aqlm}


def _integer(where: Path | str, said: Mapping[str, Any], key: str) -> int:
    value = said.get(key)
    if type(value) is not int:
        raise CheckpointError(f"{where}: quantization_config: {key} {value!r}, must be an integer")
    return value


def _aqlm_layer(name: str, config: CodebookConfig, model: Model) -> Layer:
    """One layer; CheckpointError unless it has all tensors, of dtypes and shapes as `config` says."""
    tensors = tuple(f"{name}.{end}" for end in ("codes", "codebooks", "scales"))
    missing = [tensor for tensor in tensors if tensor not in model.tensors]
    if missing:
        raise CheckpointError(f"{model.path}: {name}: {' and '.join(missing)} {'are' if missing[1:] else 'is'} missing")
    codes, codebooks, scales = (model.tensors[tensor] for tensor in tensors)
    integers = ("I8", "U8", "I16", "U16") if config.b <= 8 else ("I16", "U16")
    rows = codes.shape[0] if codes.shape else 0
    _check(
        model, tensors[0], integers, (rows, *codes.shape[1:2], config.m), f"[rows, columns / {config.v}, {config.m}]"
    )
    _check(model, tensors[1], _FLOATS, (config.m, config.centroids, 1, config.v))
    _check(model, tensors[2], _FLOATS, (rows, 1, 1, 1))
    return Layer(tensors, str(config), lambda: from_aqlm(codes.numpy(), codebooks.numpy(), scales.numpy()))


def _check(
    model: Model, tensor: str, dtypes: tuple[str, ...], shape: tuple[int, ...], shown: str | None = None
) -> None:
    """CheckpointError, naming the tensor's file, unless it is of one of the dtypes and of this shape, not empty."""
    held: RawTensor = model.tensors[tensor]
    if held.dtype in dtypes and held.shape == shape and 0 not in shape:
        return
    [path] = [file.path for file in model.files if tensor in file.tensors]
    raise CheckpointError(f"{path}: {tensor}: {held}, must be {' or '.join(dtypes)} {shown or list(shape)}")
