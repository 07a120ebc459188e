"""The matrices of a model that are explored, with their calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codegemm.calibration import Calibration, load
from codegemm.contents import is_quantised
from codegemm.errors import CheckpointError
from codegemm.measuring import memory, sources
from codegemm.quantize.matrix import as_matrix
from codegemm.shards import Model, open_model


@dataclass(frozen=True)
class Matrix:
    """values: float32 [out_features, in_features], finite. calibration: None, or that of its x."""

    name: str
    values: npt.NDArray[np.float32]
    calibration: Calibration | None = None


def load_matrices(path: Path, tensors: Sequence[str], calibration: Path | None) -> list[Matrix]:
    """The named tensors of a safetensors file or a model's folder, or `typical` of it.

    calibration: the file to take theirs from.

    Raises CheckpointError for a file or a tensor that won't do, ValueError for values that aren't finite or all zero
    and where the calibration lacks a tensor or is for another in_features, MemoryError where they have no room.
    """
    model = open_model(path)
    if is_quantised(model):
        raise CheckpointError(f"{path}: its weights are quantised already; dense matrices are needed")
    names = list(dict.fromkeys(tensors)) or [typical(model)]
    calibrations = {} if calibration is None else load(calibration)
    copied = [tensor for name in names if (tensor := model.tensors.get(name)) and tensor.dtype != "F32"]
    memory.ensure(f"{path}: {', '.join(names)}", sum(4 * prod(tensor.shape) for tensor in copied))
    matrices = []
    for name in names:
        held = sources.read_matrix(model, name)
        try:
            values = as_matrix(held)
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
        if not values.any():
            raise ValueError(f"{path}: {name}: all its elements are zero, and no error is relative to that")
        its = None if calibration is None else _calibration_of(name, values, calibrations)
        matrices.append(Matrix(name, values, its))
    return matrices


def typical(model: Model) -> str:
    """The first matrix of the shape that the model has most of, of several such shapes the largest.

    Linear layers come once in every block of a model; larger matrices that come once are embeddings.
    """
    shapes = sources.matrices(model)
    counts = Counter(shapes.values())
    chosen = max(counts, key=lambda shape: (counts[shape], shape[0] * shape[1]))
    return next(name for name, shape in shapes.items() if shape == chosen)


def _calibration_of(tensor: str, values: npt.NDArray, calibrations: Mapping[str, Calibration]) -> Calibration:
    name = tensor.removesuffix(".weight")
    calibration = calibrations.get(name)
    if calibration is None:
        known = ", ".join(list(calibrations)[:5]) + ", ..." * (len(calibrations) > 5)
        raise ValueError(f"calibration: has no {name!r}; it has {known or 'nothing'}")
    if calibration.in_features != values.shape[1]:
        raise ValueError(f"calibration: {name!r} is for in_features={calibration.in_features}, not {values.shape[1]}")
    return calibration
