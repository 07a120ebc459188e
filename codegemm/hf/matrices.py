"""Which matrices a model has that could be quantised, and what becomes of each."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from math import prod
from typing import Any

import torch
from transformers.quantizers.quantizers_utils import should_convert_module

from codegemm.formats.format import fitted, spec_of
from codegemm.hf import experts
from codegemm.hf.config import CodegemmConfig
from codegemm.quantize.selection import spared
from codegemm.shards import few

MOST_DENSE = 0.05  # of the linear parameters, that may stay dense although nobody named them
_NAMED = 8  # in a message
_logger = logging.getLogger("codegemm.hf")


@dataclass(frozen=True)
class Matrix:
    """One [out_features, in_features] to be quantised. parameter: of the dense model, whose rows `rows` it is, of
    expert number `expert` where that holds those of several."""

    name: str
    parameter: str
    shape: tuple[int, int]
    config: str
    rows: slice | None = None
    expert: int | None = None

    @property
    def module(self) -> str:
        """Of the dense model, that has it."""
        return self.parameter.rpartition(".")[0]

    @property
    def nbytes(self) -> float:
        """Of the packed weight."""
        return spec_of(self.shape, self.config).packed_bits / 8


@dataclass(frozen=True)
class Plan:
    """What is quantised, by the names of modules, and the names of what stays dense."""

    matrices: Mapping[str, Matrix]
    dense: Sequence[str] = ()
    by_parameter: Mapping[str, Sequence[Matrix]] = field(default_factory=dict)

    @classmethod
    def of(cls, matrices: Iterable[Matrix], dense: Iterable[str]) -> Plan:
        """With the matrices of each parameter together."""
        matrices = tuple(matrices)
        together: dict[str, list[Matrix]] = {}
        for matrix in matrices:
            together.setdefault(matrix.parameter, []).append(matrix)
        return cls({matrix.name: matrix for matrix in matrices}, sorted(dense), together)

    def of_layers(self, layers: Collection[str]) -> Plan:
        """The same where only these layers were quantised: a new head, which no file has, was not."""
        others = [matrix.module for name, matrix in self.matrices.items() if name not in layers]
        return Plan.of((self.matrices[name] for name in layers if name in self.matrices), {*self.dense, *others})


def plan(model: torch.nn.Module, config: CodegemmConfig, names: experts.Names) -> Plan:
    """What becomes of a dense model, on whatever device.

    ValueError where nothing is quantised, for a name in the configuration that fits nothing, for a layer that it can't
    hold, and where more than MOST_DENSE of the model would stay dense although nobody named it.
    """
    found = tuple(_found(model, config, names))
    _check_names(config, [matrix.name for matrix in found], dict(model.named_modules()))
    named = tuple(config.modules_to_not_convert or ())
    usual = _usual(model)
    taken, dense = [], {name for name in usual if name}
    for matrix in found:
        asked = named_config(config, matrix.name)
        if asked and usual.get(matrix.module):
            raise ValueError(f"layers: {matrix.name} shares its weight with another module, and stays dense")
        if not asked and (matrix.module in usual or _is_named(matrix.name, named)):
            dense.add(matrix.module)
            continue
        try:
            spec = spec_of(matrix.shape, matrix.config)
        except ValueError as error:
            raise ValueError(f"{matrix.name}: {error} (modules_to_not_convert leaves it as it is)") from None
        if not asked and spec.packed_bits >= 16 * prod(matrix.shape):
            dense.add(matrix.module)
        else:
            taken.append(matrix)
    _check_whole(taken, dense)
    dense -= {matrix.module for matrix in taken}
    made = Plan.of(taken, dense)
    _check_dense(model, made, (*named, *dense))
    if not taken:
        raise ValueError(f"nothing to quantise: modules_to_not_convert leaves none of {len(found)} linear layers")
    _tell(config, made)
    return made


def expected(
    model: torch.nn.Module, config: CodegemmConfig, names: experts.Names, held: Collection[str] | None = None
) -> Plan:
    """What a model that was saved quantised has: all but the list that it was saved with, layers that share their
    weight, and new heads. held: the names of all tensors in its files, by which a head is known to be new."""
    config, shared = _as_named_in(model, config), _tied(model)
    listed = set(config.modules_to_not_convert or ())
    found = tuple(matrix for matrix in _found(model, config, names) if matrix.module not in shared)
    new = set() if held is None else _new_heads(model, [matrix.name for matrix in found], held) - config.layers.keys()
    listed = {*listed, *new}
    dense = {matrix.name for matrix in found if _is_inside(matrix.name, listed)}
    taken = [matrix for matrix in found if matrix.name not in dense]
    _check_whole(taken, {matrix.module for matrix in found if matrix.name in dense})
    return Plan.of(taken, listed)


def resolved(config: CodegemmConfig, made: Plan) -> CodegemmConfig:
    """The configuration of a model of that plan: layers by their names, where they differ, and all that is dense."""
    layers: dict[str, str] = {}
    pooled: dict[str, set[str]] = {}
    for matrix in made.matrices.values():
        pooled.setdefault(pool_of(matrix), set()).add(matrix.config)
    for matrix in made.matrices.values():
        together = pool_of(matrix)
        if matrix.config != config.config:
            layers[together if len(pooled[together]) == 1 else matrix.name] = matrix.config
    return CodegemmConfig(config.config, layers, made.dense)


def pool_of(matrix: Matrix) -> str:
    """Its name, or the pattern of those of all experts."""
    if matrix.expert is None:
        return matrix.name
    head, _, own = matrix.name.rpartition(".")
    return f"{head.rpartition('.')[0]}.*.{own}"


def _found(model: torch.nn.Module, config: CodegemmConfig, names: experts.Names) -> Iterable[Matrix]:
    """All matrices of linear layers and of experts, with the configuration that each would have."""

    def matrix(name: str, parameter: str, shape: Sequence[int], *place: Any) -> Matrix:
        rows, columns = shape
        text = named_config(config, name) or config.config
        return Matrix(name, parameter, (rows, columns), str(fitted(text, columns)), *place)

    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear:
            yield matrix(name, f"{name}.weight", module.weight.shape)
        elif experts.are_quantizable(module):
            for place in experts.places(module, names):
                whole = f"{name}.{place.expert}.{place.name}"
                yield matrix(whole, f"{name}.{place.parameter}", place.shape, place.rows, place.expert)


def _new_heads(model: torch.nn.Module, layers: Iterable[str], held: Collection[str]) -> set[str]:
    """Layers around a base model of which no tensor is held."""
    base, known = getattr(model, "base_model_prefix", ""), {name.rpartition(".")[0] for name in held}
    if not base or not hasattr(model, base):
        return set()
    return {name for name in layers if not name.startswith(f"{base}.") and name not in known}


def _check_whole(taken: Iterable[Matrix], dense: Set[str]) -> None:
    """ValueError where some experts of a layer are dense, and others not."""
    for matrix in taken:
        if matrix.expert is not None and matrix.module in dense:
            raise ValueError(f"{matrix.module}: all experts of a layer are quantised, or none is")


@lru_cache(maxsize=1024)
def _is_named(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether patterns of modules_to_not_convert name something or what it is in: `vision_tower` all of its layers."""
    around = name.rpartition(".")[0]
    return not should_convert_module(name, list(patterns)) or (around != "" and _is_named(around, patterns))


def _is_inside(name: str, listed: Set[str]) -> bool:
    """Whether a layer is a module of a list that a model was saved with, or inside one; `lm_head` is one anywhere.

    By whole names: a pattern that fits more would have layers begin with random numbers that the files have quantised.
    """
    parts = name.split(".")
    return not listed.isdisjoint({parts[-1], *(".".join(parts[:end]) for end in range(1, len(parts) + 1))})


def _as_named_in(model: torch.nn.Module, config: CodegemmConfig) -> CodegemmConfig:
    """With names as this model has them: one with a head has another module around those of one without."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    modules = set(dict(model.named_modules()))

    def own(name: str) -> str:
        if name.partition(".*.")[0] not in modules:
            for other in (f"{prefix}{name}", name.removeprefix(prefix)):
                if other.partition(".*.")[0] in modules:
                    return other
        return name

    layers = {own(name): text for name, text in config.layers.items()}
    return CodegemmConfig(config.config, layers, [own(name) for name in config.modules_to_not_convert or ()])


def named_config(config: CodegemmConfig, name: str) -> str | None:
    """The configuration that `layers` has for a layer."""
    if name in config.layers:
        return config.layers[name]
    return next((text for key, text in reversed(config.layers.items()) if fnmatchcase(name, key)), None)


def _usual(model: torch.nn.Module) -> dict[str, bool]:
    """Modules that stay dense unless somebody names them, and whether that is because they share their weight."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    shared = _tied(model)
    owners = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    exact = [*(getattr(model, "_keep_in_fp32_modules", None) or ())]  # what transformers says is to stay in float32
    found: dict[str, bool] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and (name in shared or owners[id(weight)] > 1):
            found[name] = True
        elif (
            weight is not None
            and weight.dim() > 1
            and (module is head or spared(f"{name}.weight") or not should_convert_module(name, exact))
        ):
            found[name] = False
    return found


def _tied(model: torch.nn.Module) -> set[str]:
    """Modules that transformers has share their weight with another."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {key.removesuffix(".weight") for key in (*tied, *tied.values())}


def _check_names(config: CodegemmConfig, matrices: Sequence[str], modules: Mapping[str, Any]) -> None:
    for key in config.layers:
        if key not in matrices and not any(fnmatchcase(name, key) for name in matrices):
            raise ValueError(f"layers: {key!r} is the name of no linear layer; there are {few(matrices, _NAMED)}")
    for pattern in config.modules_to_not_convert or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"modules_to_not_convert: {pattern!r}: {error}") from None
        if all(should_convert_module(name, [pattern]) for name in (*matrices, *modules)):
            raise ValueError(f"modules_to_not_convert: {pattern!r} fits no module; there are {few(matrices, _NAMED)}")


def _check_dense(model: torch.nn.Module, made: Plan, named: tuple[str, ...]) -> None:
    """ValueError where too much would stay dense unnoticed."""
    quantized = sum(prod(matrix.shape) for matrix in made.matrices.values())
    unnoticed = {
        name: parameter.numel()
        for owner, module in model.named_modules()
        if not isinstance(module, (torch.nn.Embedding, torch.nn.modules.conv._ConvNd))
        for name, parameter in ((f"{owner}.{own}", each) for own, each in module._parameters.items())
        if parameter is not None
        and parameter.dim() > 1
        and name not in made.by_parameter
        and not _is_named(name, named)
        and not spared(name)
    }
    total = sum(unnoticed.values())
    if total and total > MOST_DENSE * (total + quantized):
        largest = sorted(unnoticed, key=unnoticed.__getitem__, reverse=True)
        share = f"{100 * total / (total + quantized):.0f} % of the linear parameters"
        raise ValueError(
            f"{few(largest, _NAMED)}: {share} are in modules that can't be quantised and would stay dense; "
            "name them in modules_to_not_convert where that is meant"
        )


def _tell(config: CodegemmConfig, made: Plan) -> None:
    """Say once which layers got another group size."""
    asked = ((matrix, named_config(config, matrix.name) or config.config) for matrix in made.matrices.values())
    others = Counter((matrix.shape[1], text, matrix.config) for matrix, text in asked if matrix.config != text)
    for (columns, text, fit), count in others.items():
        said = "%d layers have %d inputs, which the group size of %s does not divide: %s"
        _logger.warning(said, count, columns, text, fit)
