"""What becomes of each tensor of a model, decided before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codegemm.calibration import Calibration, CalibrationFile
from codegemm.contents import weight_names
from codegemm.files import RawTensor
from codegemm.formats.format import fitted, format_of, spec_of
from codegemm.formats.native import RESERVED
from codegemm.quantize.selection import Selection
from codegemm.shards import Model
from codegemm.storage import check_names


@dataclass(frozen=True)
class Quantized:
    """A matrix `tensor` [out_features, in_features] of so many source_bytes that becomes the weight `name`.

    config: its own, with a group size that divides its rows. calibrated: whether there is a calibration for it.
    """

    tensor: str
    name: str
    shape: tuple[int, int]
    config: str
    bits_per_weight: float
    calibrated: bool
    source_bytes: int

    @property
    def size(self) -> int:
        """The number of its weights."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Of the packed weight."""
        return round(self.bits_per_weight * self.size / 8)


@dataclass(frozen=True)
class Copied:
    """A tensor that stays as it is.

    reason: why a matrix that was asked for does; None for one that wasn't, and for what is no matrix.
    """

    tensor: str
    reason: str | None
    nbytes: int


Outcome = Quantized | Copied


def plan(
    model: Model, config: Any, selection: Selection, calibrations: Mapping[str, Calibration], where: str = "calibration"
) -> tuple[Outcome, ...]:
    """What becomes of each tensor, file by file in their order.

    where: what messages call the calibrations, which are by the weights' names. Raises ValueError for names that one
    model can't hold, for a calibration of no matrix or of other in_features and where nothing can be quantised;
    TypeError for what is no calibration.
    """
    stored = weight_names(model)
    outcomes = tuple(
        _outcome(tensor, held, config, selection, calibrations, stored)
        for file in model.files
        for tensor, held in file.tensors.items()
    )
    chosen = {one.tensor: one.name for one in outcomes if isinstance(one, Quantized)}
    for tensor, name in chosen.items():
        if tensor != name and name in chosen:
            raise ValueError(f"{model.path}: both {name} and {tensor} match {selection}")
    ends = format_of(config).weight.tensor_names + format_of(getattr(config, "core", config)).weight.tensor_names
    others = {name: text for file in model.files for name, text in kept_metadata(file.metadata).items()}
    check_names(dict.fromkeys(chosen.values(), ends), model.tensors.keys() - chosen.keys(), others)
    _check_calibrations(where, calibrations, model, chosen)
    if not chosen:
        raise nothing(model, outcomes, selection)
    return outcomes


def nothing(model: Model, outcomes: tuple[Outcome, ...], selection: Selection) -> ValueError:
    """The error where no matrix is quantised."""
    reasons = (f"{one.tensor}: {one.reason}" for one in outcomes if isinstance(one, Copied) and one.reason)
    return ValueError(f"{model.path}: nothing to quantise: {next(reasons, f'no matrix matches {selection}')}")


def weight_name(tensor: str) -> str:
    """Of the weight that a matrix becomes."""
    return tensor.removesuffix(".weight")


def kept_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a file says beside its format."""
    return {name: text for name, text in metadata.items() if name not in RESERVED}


def _outcome(
    tensor: str,
    held: RawTensor,
    config: Any,
    selection: Selection,
    calibrations: Mapping[str, Calibration],
    stored: set[str],
) -> Outcome:
    """stored: the model's weights that are quantised already."""
    if len(held.shape) != 2 or not selection.wants(tensor):
        return Copied(tensor, None, held.nbytes)
    try:
        if tensor.rpartition(".")[0] in stored:
            raise ValueError("is part of a quantised weight")
        own = fitted(config, held.shape[1])
        bits = _bits(held, own, selection.spares(tensor))
    except ValueError as error:
        return Copied(tensor, str(error), held.nbytes)
    name, shape = weight_name(tensor), (held.shape[0], held.shape[1])
    return Quantized(tensor, name, shape, str(own), bits, name in calibrations, held.nbytes)


def _bits(held: RawTensor, config: Any, spared: str | None) -> float:
    """Bits of a weight of a matrix; ValueError where it is better left as it is."""
    if not held.is_matrix or 0 in held.shape:
        raise ValueError(f"{held} is not a matrix of floats")
    if spared:
        raise ValueError(f"{spared}; include can name it")
    rows, columns = held.shape
    spec = spec_of((rows, columns), config)
    if spec.packed_bits >= 8 * held.nbytes:
        bits = 8 * held.nbytes / (rows * columns)
        raise ValueError(f"would take {spec.bits_per_weight:.1f} bits/weight, has {bits:.0f}")
    return spec.bits_per_weight


def _check_calibrations(
    where: str, calibrations: Mapping[str, Calibration], model: Model, chosen: Mapping[str, str]
) -> None:
    """Each must be one of the model's matrices, by the name of its weight, and of its in_features."""
    columns = {tensor: held.shape[1] for tensor, held in model.tensors.items() if held.is_matrix}
    widths = {weight_name(tensor): width for tensor, width in columns.items()}
    widths |= {name: columns[tensor] for tensor, name in chosen.items()}
    for name in sorted(calibrations):
        if name not in widths:
            raise ValueError(f"{where}: {name} is none of the matrices of {model.path}")
        in_features = _in_features(where, calibrations, name)
        if in_features != widths[name]:
            raise ValueError(f"{where}: {name}: in_features={in_features}, W has {widths[name]}")


def _in_features(where: str, calibrations: Mapping[str, Calibration], name: str) -> int:
    if isinstance(calibrations, CalibrationFile):
        return calibrations.in_features(name)
    one = calibrations[name]
    if not isinstance(one, Calibration):
        raise TypeError(f"{where}: {name}: {type(one).__name__}, must be a codegemm.Calibration")
    return one.in_features
