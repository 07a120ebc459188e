"""In which order a block uses its matrices, and which of them have the same inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch

from codegemm.hf import experts
from codegemm.hf.matrices import Matrix


@dataclass(frozen=True)
class Stage:
    """Matrices that are quantised at a time: none depends on what another gives.

    groups: their names within the block, those with the same input together.
    """

    groups: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all."""
        return tuple(name for group in self.groups for name in group)


class _Reached(Exception):
    """The last layer that was waited for has its input."""


def with_layers(block: torch.nn.Module, names: experts.Names, config: Any) -> torch.nn.Module:
    """A copy of a block, on the same memory, in which every matrix of an expert is a linear layer, too."""
    own = copy.deepcopy(block, {id(tensor): tensor for tensor in (*block.parameters(), *block.buffers())})
    for name, module in list(own.named_modules()):
        if experts.are_quantizable(module):
            unrolled = experts.CodebookExperts(getattr(module, "config", config), module, names)
            for place in experts.places(module, names):
                layer = torch.nn.Linear(*reversed(place.shape), bias=False, device="meta")
                own_rows = module._parameters[place.parameter][place.expert, place.rows]
                layer.weight = torch.nn.Parameter(own_rows, requires_grad=False)
                setattr(unrolled.get_submodule(str(place.expert)), place.name, layer)
            unrolled.let_go()
            own.set_submodule(name, unrolled)
    return own.eval()


def stages(block: torch.nn.Module, matrices: Mapping[str, Matrix], inputs: tuple[Any, ...], kwargs: Any) -> list[Stage]:
    """Of a block's matrices, by their names in it, in the order in which one call of it uses them.

    Experts' matrices are in one stage for those that see the token, and in one for those behind the activation,
    whichever of them this call reaches. A matrix that no call reaches comes last, in a stage of its own.
    """
    order: dict[Any, dict[int, list[str]]] = {}
    seen: list[torch.Tensor] = []  # so that no tensor has the number of another

    def note(name: str, x: torch.Tensor) -> None:
        seen.append(x)
        matrix = matrices[name]
        stage = id(x) if matrix.expert is None else _side(matrix)
        together = order.setdefault(stage, {}).setdefault(id(x), [])
        if name not in together:
            together.append(name)

    with ExitStack() as hooks, torch.no_grad():
        for name in matrices:
            layer = block.get_submodule(name)
            hooks.enter_context(layer.register_forward_pre_hook(lambda _, given, name=name: note(name, given[0])))
        block(*inputs, **kwargs)
    _add_unreached(order, matrices)
    return [Stage(tuple(tuple(group) for group in groups.values())) for groups in order.values()]


def _add_unreached(order: dict[Any, dict[int, list[str]]], matrices: Mapping[str, Matrix]) -> None:
    reached = {name for groups in order.values() for group in groups.values() for name in group}
    for name, matrix in matrices.items():
        if name in reached:
            continue
        if matrix.expert is None:
            order[name] = {0: [name]}
        else:
            # -1 - expert: the others of the same expert have the same input.
            order.setdefault(_side(matrix), {}).setdefault(-1 - matrix.expert, []).append(name)


def _side(matrix: Matrix) -> tuple[str, bool]:
    """Of an expert's matrix the experts that it is of, and whether it is behind their activation."""
    return matrix.module, "down" in matrix.parameter.rpartition(".")[2]


def run_until(
    block: torch.nn.Module, names: Iterable[str], heard: Any, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Call a block as far as the last of these layers; heard(name, x): with the input [rows, in_features] of each."""
    waiting = set(names)
    expected = {name: block.get_submodule(name) for name in names}

    def hear(name: str, x: torch.Tensor) -> None:
        heard(name, x.reshape(-1, x.shape[-1]))
        waiting.discard(name)
        if not waiting:
            raise _Reached

    with ExitStack() as hooks, torch.no_grad():
        for name, layer in expected.items():
            hooks.enter_context(layer.register_forward_pre_hook(lambda _, given, name=name: hear(name, given[0])))
        hooks.enter_context(suppress(_Reached))
        block(*inputs, **kwargs)
