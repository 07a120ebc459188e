"""Experts of a mixture, each with quantised matrices of its own.

transformers holds the experts of a layer in parameters of three axes, gate_up_proj [experts, 2 * intermediate, hidden]
and down_proj [experts, hidden, intermediate]; checkpoints hold a matrix each. Quantised ones are under the names of the
checkpoint: `experts.3.w1`, or `experts.3.gate_proj`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.integrations.moe import ExpertsInterface, use_experts_implementation

# Of a parameter of experts, the names of the matrices that an expert has there, one below the other.
Names = Mapping[str, Sequence[str]]
_USUAL: Names = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}
_TARGET = re.compile(r"experts\.(gate_up_proj|up_proj|down_proj)\$?$")
_SOURCE = re.compile(r"experts\.(?:\*|\\d\+)\.(\w+)\.weight\$?$")
_UNLIKE = {"is_transposed": False, "has_bias": False, "is_concatenated": True, "has_post_expert_norm": False}


@dataclass(frozen=True)
class Place:
    """Where an expert's matrix `name` [out_features, in_features] is in the experts' parameters."""

    expert: int
    name: str
    parameter: str
    rows: slice
    shape: tuple[int, int]


def names_of(model: torch.nn.Module) -> Names:
    """What the checkpoints of a model call its experts' matrices."""
    found = dict(_USUAL)
    for conversion in get_model_conversion_mapping(model):
        if not isinstance(conversion, WeightConverter):
            continue
        targets = [_TARGET.search(pattern) for pattern in conversion._original_target_patterns]
        sources = [_SOURCE.search(pattern) for pattern in conversion._original_source_patterns]
        if len(targets) == 1 and targets[0] and all(sources):
            found[targets[0][1]] = tuple(source[1] for source in sources if source)
    return found


def are_quantizable(module: torch.nn.Module) -> bool:
    """Whether a module is of experts that CodebookExperts can take the place of."""
    own = module._parameters
    first = own.get("gate_up_proj", own.get("up_proj"))
    down = own.get("down_proj")
    return (
        first is not None
        and down is not None
        and first.dim() == down.dim() == 3
        and first.shape[::2] == (down.shape[0], down.shape[1])
        and all(getattr(module, name, usual) == usual for name, usual in _UNLIKE.items())
        and hasattr(module, "act_fn")
    )


def places(module: torch.nn.Module, names: Names) -> Iterator[Place]:
    """Of all matrices of such a module."""
    for parameter in ("gate_up_proj", "up_proj", "down_proj"):
        if module._parameters.get(parameter) is None:
            continue
        count, rows, columns = module._parameters[parameter].shape
        height = rows // len(names[parameter])
        for expert in range(count):
            for number, name in enumerate(names[parameter]):
                place = slice(number * height, (number + 1) * height)
                yield Place(expert, name, parameter, place, (height, columns))


class _Interface(ExpertsInterface):  # type: ignore[misc]
    """However a model is told to multiply by its experts: codes are multiplied in one way."""

    def get_interface(self, experts_implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
        return default


class Expert(torch.nn.Module):  # type: ignore[misc]
    """The matrices of one, CodebookLinears by the names of the checkpoint."""


class CodebookExperts(torch.nn.Module):  # type: ignore[misc]
    """Experts, modules `0`, `1` and so on, in place of a module that `are_quantizable` says yes to: quantised matrices
    with its gate and activation."""

    is_capturable = False  # in a CUDA graph: which experts a token goes to is decided on the host

    def __init__(self, config: Any, dense: torch.nn.Module, names: Names) -> None:
        """dense: the module, whose attributes are taken, for a while its parameters, too. names: as of `names_of`."""
        super().__init__()
        for name, value in vars(dense).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        self.act_fn = dense.act_fn
        self.dense, self.names = type(dense), {key: names[key] for key in names if key in dense._parameters}
        for name, parameter in dense._parameters.items():
            self.register_parameter(name, parameter)  # until the matrices that it holds are quantised
        self.count = dense.down_proj.shape[0]
        for expert in range(self.count):
            self.add_module(str(expert), Expert().train(dense.training))

    @property
    def experts(self) -> list[Expert]:
        """In their order."""
        return [self.get_submodule(str(expert)) for expert in range(self.count)]

    def let_go(self) -> None:
        """Of all dense parameters."""
        self._parameters.clear()

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states [tokens, hidden]; top_k_index, top_k_weights [tokens, k]: of each token its experts (the number
        of all for none) and their shares. The sums [tokens, hidden] of their outputs."""
        chosen = top_k_index.reshape(-1)
        order = chosen.argsort(stable=True)
        counts = chosen.bincount(minlength=self.count).tolist()
        tokens, shares = order // top_k_index.shape[-1], top_k_weights.reshape(-1, 1)[order]
        summed, start = torch.zeros_like(hidden_states), 0
        for expert, count in zip(self.experts, counts):
            if count:
                rows = slice(start, start + count)
                y = self._output(expert, hidden_states[tokens[rows]]) * shares[rows]
                summed = summed.index_add(0, tokens[rows], y.to(summed.dtype))
            start += count
        return summed

    def _output(self, expert: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        first = self.names.get("gate_up_proj")
        if first is None:
            hidden = self.act_fn(_product(expert, self.names["up_proj"], x))
        else:
            hidden = self._apply_gate(_product(expert, first, x))
        return _product(expert, self.names["down_proj"], hidden)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self.dense._apply_gate(self, gate_up)

    def to_dense(self, dtype: torch.dtype) -> torch.nn.Module:
        """The module that these took the place of, with the matrices as they are."""
        with torch.device("meta"):
            dense = self.dense(self.config)
        for parameter, names in self.names.items():
            stacked = [torch.cat([getattr(each, name).dequantize(dtype) for name in names]) for each in self.experts]
            setattr(dense, parameter, torch.nn.Parameter(torch.stack(stacked)))
        return dense.train(self.training)


def _product(expert: torch.nn.Module, names: Sequence[str], x: torch.Tensor) -> torch.Tensor:
    outputs = [getattr(expert, name)(x) for name in names]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


use_experts_implementation(CodebookExperts, experts_interface=_Interface())
