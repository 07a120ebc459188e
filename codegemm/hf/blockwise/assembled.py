"""The quantised model's folder: the source's files, with weights in the places of dense matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from codegemm import model_config
from codegemm.destination import Destination
from codegemm.files import File, RawTensor
from codegemm.formats.native import Stored, write_hf_weights
from codegemm.hf.blockwise.skeleton import Skeleton
from codegemm.hf.config import CodegemmConfig
from codegemm.hf.matrices import Matrix, Plan, resolved
from codegemm.shards import CONFIG, read_config


def write(
    place: Destination,
    work: Path,
    skeleton: Skeleton,
    plan: Plan,
    config: CodegemmConfig,
    weights: Mapping[str, Stored],
    tensors: Mapping[str, torch.Tensor],
    beside: Mapping[str, bytes],
) -> None:
    """Write the folder, in `work` first. weights: of all layers; tensors: parameters that changed, by their names in
    the model; beside: contents of other files."""
    homes: dict[str, dict[str, Stored]] = {}  # of each file's first tensor, the weights that stand in for its matrices
    replaced: set[str] = set()
    for parameter, parts in plan.by_parameter.items():
        keys = skeleton.keys[parameter]
        replaced.update(keys)
        for matrix in parts:
            key, name = _named(matrix, keys)
            homes.setdefault(key, {})[name] = weights[matrix.name]
    changed = {key: tensors[name] for name in tensors for key in skeleton.keys[name]}

    def write_file(file: File, path: Path) -> None:
        here = {name: one for key in file.tensors for name, one in homes.get(key, {}).items()}
        others = {
            key: _like(held, changed[key]) if key in changed else held
            for key, held in file.tensors.items()
            if key not in replaced
        }
        write_hf_weights(path, here, others, {**file.metadata})

    said = read_config(skeleton.source.folder or Path()) or {}
    entry = resolved(config, plan).to_dict()
    place.write(work, write_file, {CONFIG: model_config.content(said, entry), **beside})


def _named(matrix: Matrix, keys: Sequence[str]) -> tuple[str, str]:
    """Of a matrix the tensor in the files that it was, or was part of, and what its weight is called there."""
    if matrix.expert is None:
        return keys[0], keys[0].removesuffix(".weight")
    own = f".{matrix.expert}.{matrix.name.rpartition('.')[2]}"
    for key in keys:
        if key.removesuffix(".weight").endswith(own):
            return key, key.removesuffix(".weight")
    return keys[0], keys[0].rpartition(".")[0] + own


def _like(held: RawTensor, value: torch.Tensor) -> RawTensor:
    """A tensor in the dtype in which the file had another."""
    kinds: dict[str, Any] = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
    own = value.detach().cpu().to(kinds[held.dtype]).contiguous()
    return RawTensor(held.dtype, held.shape, own.view(torch.uint8).numpy().reshape(-1))
