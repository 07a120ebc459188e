"""The dense matrices of a safetensors file as quantised weights in another, all else copied."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegemm.calibration import Calibration, load
from codegemm.files import File, RawTensor, check_writable
from codegemm.formats.format import format_of
from codegemm.formats.native import RESERVED
from codegemm.formats.weight import Weight
from codegemm.quantize import configured, quantize
from codegemm.quantize.stopping import Stop
from codegemm.storage import check_names, save_all

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Quantized:
    """A matrix `tensor` [out_features, in_features] that became the weight `name`.

    calibrated: whether there was a calibration for it.
    """

    tensor: str
    name: str
    shape: tuple[int, int]
    bits_per_weight: float
    calibrated: bool


@dataclass(frozen=True)
class Copied:
    """A tensor that stays as it is. reason: why it can't be quantised; None where its name was not asked for."""

    tensor: str
    reason: str | None


@dataclass(frozen=True)
class QuantizedFile:
    """What became of each tensor, in the source's order, and the files' bytes before and after."""

    quantized: tuple[Quantized, ...]
    copied: tuple[Copied, ...]
    source_bytes: int
    target_bytes: int


def quantize_file(
    source: StrPath,
    target: StrPath,
    config: Any,
    *,
    include: str = r".*\.weight",
    calibration: StrPath | Mapping[str, Calibration] | None = None,
    rotate: bool = False,
    time_limit: float | None = None,
    seed: int = 0,
    progress: bool = False,
    on_tensor: Callable[[Quantized | Copied], None] | None = None,
) -> QuantizedFile:
    """Quantise the matrices of a safetensors file whose names match and write them, and all else, to another.

    A matrix `name.weight` of float16, bfloat16, float32 or float64 becomes the weight `name`, one of any other name
    keeps it; `codegemm.load(target, name)` reads it. What can't be quantised is copied: tensors that are no matrices of
    floats, shapes that the configuration can't hold, matrices that are not finite. Embeddings and output heads are
    matrices, too, and are quantised unless `include` leaves them out. An existing target is replaced only when
    everything is written; the source may be the target.

    config, rotate, seed, progress: as in `quantize`; time_limit: seconds for each matrix.
    include: a regular expression of whole tensor names.
    calibration: the layers' inputs by the weights' names, or a file that `codegemm.calibration.save` wrote; a matrix
        that it does not name is quantised without.
    on_tensor: hears of each tensor when it is done, in the order of the file.

    Raises ValueError, before anything is quantised, for arguments that won't do, a calibration of no matrix or of other
    in_features, and names that one file can't hold, and where no matrix could be quantised; CheckpointError, one of
    them, where a file can't be read or written; TypeError for a configuration or calibration of another type.
    """
    source, target = Path(source), Path(target)
    try:
        wanted = re.compile(include)
    except re.error as error:
        raise ValueError(f"include {include!r}: {error}") from None
    config = configured(config, rotate, calibrated=calibration is not None)
    if seed < 0:
        raise ValueError(f"seed={seed!r}: must be at least 0")
    Stop(time_limit)  # raises for a time that is none
    check_writable(target)
    file = File(source)
    names = _names(file, wanted)
    kept = {key: value for key, value in file.metadata.items() if key not in RESERVED}
    ends = format_of(config).weight.tensor_names + format_of(getattr(config, "core", config)).weight.tensor_names
    check_names(dict.fromkeys(names.values(), ends), file.tensors.keys() - names.keys(), kept)
    calibrations = _calibrations(calibration, {name: file.tensors[tensor] for tensor, name in names.items()})

    weights, copied, done = dict[str, Weight](), dict[str, RawTensor](), list[Quantized | Copied]()
    for tensor, held in file.tensors.items():
        name, reason = names.get(tensor), None
        if name is not None:
            try:
                weights[name] = weight = quantize(
                    held.numpy(), config, calibration=calibrations.get(name), seed=seed, progress=progress,
                    time_limit=time_limit,
                )  # fmt: skip
                done.append(Quantized(tensor, name, weight.shape, weight.bits_per_weight, name in calibrations))
            except ValueError as error:
                reason = str(error)
        elif wanted.fullmatch(tensor):
            reason = f"{held} is not a matrix of floats"
        if name not in weights:
            copied[tensor] = held
            done.append(Copied(tensor, reason))
        if on_tensor is not None:
            on_tensor(done[-1])
    if not weights:
        reasons = (f"{one.tensor}: {one.reason}" for one in done if isinstance(one, Copied) and one.reason)
        raise ValueError(f"{source}: nothing to quantise: {next(reasons, f'no matrix matches include {include!r}')}")
    source_bytes = source.stat().st_size
    save_all(target, weights, copied, kept)
    return QuantizedFile(
        tuple(one for one in done if isinstance(one, Quantized)),
        tuple(one for one in done if isinstance(one, Copied)),
        source_bytes,
        target.stat().st_size,
    )


def _names(file: File, wanted: re.Pattern[str]) -> dict[str, str]:
    """The weights' names by the matrices', in the file's order."""
    matrices = [name for name, held in file.tensors.items() if wanted.fullmatch(name) and held.is_matrix]
    names = {tensor: tensor.removesuffix(".weight") for tensor in matrices}
    for tensor, name in names.items():
        if tensor != name and name in names:
            raise ValueError(f"{file.path}: both {name} and {tensor} match include {wanted.pattern!r}")
    return names


def _calibrations(
    given: StrPath | Mapping[str, Calibration] | None, matrices: Mapping[str, RawTensor]
) -> Mapping[str, Calibration]:
    """Those given, each one of the matrices, here by the weights' names, and of its in_features."""
    where, known = ("calibration", given or {}) if given is None or isinstance(given, Mapping) else (given, load(given))
    for name in sorted(known.keys() - matrices.keys()):
        raise ValueError(f"{where}: {name} is none of the matrices to quantise")
    for name, one in known.items():
        if not isinstance(one, Calibration):
            raise TypeError(f"{where}: {name}: {type(one).__name__}, must be a codegemm.Calibration")
        if one.in_features != matrices[name].shape[1]:
            raise ValueError(f"{where}: {name}: in_features={one.in_features}, W has {matrices[name].shape[1]}")
    return known
