"""A quantised model's files, looked at before anything is loaded, and the model after it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import safe_open
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from codegemm.errors import CheckpointError
from codegemm.files import File
from codegemm.formats.native import ENTRY
from codegemm.hf import experts
from codegemm.shards import few
from codegemm.torch.layer import CodebookLinear
from codegemm.torch.replace import quantized_layers
from codegemm.torch.tensors import parse

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
_NAMED = 5


def names(files: Sequence[str]) -> set[str]:
    """Of all tensors of a quantised model's files; CheckpointError for files of another kind."""
    pickles = [file for file in files if not str(file).endswith(".safetensors")]
    if pickles:
        raise CheckpointError(f"{pickles[0]}: must be a safetensors file, quantised layers are in no other")
    return {key for path in files for key in _keys(path)}


def _keys(path: str) -> list[str]:
    return list(File(path).tensors)


def check(model: Any, files: Sequence[str], conversions: Sequence[Any], layers: Sequence[str]) -> None:
    """CheckpointError unless the files hold all that quantised layers need, of their shapes, and describe no others.

    Floats keep the dtype that they have in the files: the layers' empty parameters take it on.
    """
    wanted = {
        f"{layer}.{name}": parameter
        for layer in layers
        for name, parameter in model.get_submodule(layer).named_parameters()
    }
    expected = model.state_dict()
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    missing, dense, quantized, others = dict(wanted), _dense(model), set(layers), []
    for path in files:
        with safe_open(path, framework="pt") as file:
            described = _descriptions(path, file.metadata() or {})
            for key in file.keys():  # noqa: SIM118
                name, _ = rename_source_key(key, renamings, converters, model.base_model_prefix, expected)
                if name not in wanted and key in wanted:
                    name = key
                layer, _, end = name.rpartition(".")
                if name in wanted:
                    missing.pop(name, None)
                    _check_description(model.get_submodule(layer), described.get(key.rpartition(".")[0], {}), path, key)
                    _take(model, name, wanted[name], f"{path}: {key}", file.get_slice(key))
                elif layer in quantized and end != "bias":
                    others.append(f"{path}: {key}")
                elif name not in expected and not dense.isdisjoint(_owners(name)):
                    raise CheckpointError(f"{path}: {key}: config.json says of its layer that it is not quantised")
    if missing:
        lacking = few(list(missing), _NAMED)
        raise CheckpointError(f"{files[0]}{' and others' * (len(files) > 1)}: {len(missing)} missing: {lacking}")
    if others:
        raise CheckpointError(f"{others[0]}: no tensor of the layer as config.json says it is quantised")


def _descriptions(path: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file says of its weights, by their names there."""
    try:
        return dict(json.loads(metadata.get(ENTRY, "{}")).get("weights", {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: metadata {ENTRY!r} is broken: {error}") from None


def _check_description(layer: Any, said: Mapping[str, Any], path: str, key: str) -> None:
    """CheckpointError where a file says otherwise than config.json what a weight is; tensors of the same shapes may be
    of several, as where blocks of another size were rotated."""
    if not isinstance(layer, CodebookLinear):
        return
    ours = parse(layer.layout).parts[0].description
    unlike = [
        f"{each} {said[each]!r}, not {ours[each]!r}" for each in ours if each in said and said[each] != ours[each]
    ]
    if unlike:
        raise CheckpointError(f"{path}: {key}: {', '.join(unlike)} as of {layer.config}, which config.json says it is")


def _dense(model: Any) -> set[str]:
    """Modules that hold matrices as they are."""
    return {
        name
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear or experts.are_quantizable(module)
    }


def _owners(tensor: str) -> set[str]:
    """Names of the modules that a layer's tensor would be of, if dense: itself, or those of experts."""
    layer = tensor.rpartition(".")[0]
    return {layer, ".".join(layer.split(".")[:-2])}


def check_loaded(model: Any) -> None:
    """CheckpointError where a quantised layer was left without numbers, as of an incomplete state_dict."""
    for name, layer in quantized_layers(model).items():
        for own, parameter in layer.named_parameters():
            if not parameter.is_meta and not getattr(parameter, "_is_hf_initialized", False):
                raise CheckpointError(f"{name}.{own}: missing")


def _take(model: Any, name: str, parameter: torch.Tensor, where: str, held: Any) -> None:
    """Have a parameter of the dtype that the file holds; CheckpointError for a tensor that it can't be."""
    shape, dtype = tuple(held.get_shape()), _DTYPES.get(held.get_dtype())
    if shape != tuple(parameter.shape):
        raise CheckpointError(f"{where}: shape {shape}, must be {tuple(parameter.shape)}")
    if dtype is None or (dtype != parameter.dtype and not (dtype.is_floating_point and parameter.is_floating_point())):
        raise CheckpointError(f"{where}: dtype {held.get_dtype()}, must be {parameter.dtype}")
    own, _, end = name.rpartition(".")
    if end != "bias" and dtype != parameter.dtype:
        layer = model.get_submodule(own)
        layer.register_parameter(end, torch.nn.Parameter(parameter.to(dtype), requires_grad=False))
