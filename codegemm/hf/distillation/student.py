"""The model that learns: the original with trainable layers in the places of its linear ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from codegemm.formats.weight import Weight
from codegemm.torch.tunable import TunableLinear

NORM_RATE = 0.25  # of the rate of codebooks and scales


@dataclass(frozen=True)
class Student:
    """model: with a TunableLinear for each weight, by their names. norms: the parameters of norms that are trained, by
    theirs."""

    model: torch.nn.Module
    layers: Mapping[str, TunableLinear]
    norms: Mapping[str, torch.nn.Parameter]

    @classmethod
    def of(cls, model: torch.nn.Module, weights: Iterator[tuple[str, Weight]], norms: bool = True) -> Student:
        """Of a model, which is changed: all its parameters are left as they are but those that are trained, of which it
        gets its own; those of norms where that is meant. ValueError for a weight of a format that is not trained."""
        layers = {}
        for name, weight in weights:
            linear = model.get_submodule(name)
            try:
                layers[name] = TunableLinear(weight, linear.bias).to(linear.weight.device)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            model.set_submodule(name, layers[name])
        return cls(model, layers, _own_norms(model) if norms else {})

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """Those of the weights."""
        found = [parameter for layer in self.layers.values() for parameter in layer.tunable.parameters()]
        return [parameter for parameter in found if parameter.requires_grad]

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Of all, for an optimiser."""
        return by_size(self.trained, rate) + by_size(list(self.norms.values()), NORM_RATE * rate)

    def recompute(self, blocks: torch.nn.ModuleList) -> None:
        """From now on a block's inner numbers are computed again on the way back, and not kept till then."""
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def weights(self) -> dict[str, Weight]:
        """As they were learnt, rounded to what is stored."""
        return {name: layer.tunable.to_weight() for name, layer in self.layers.items()}


def by_size(parameters: Sequence[torch.nn.Parameter], rate: float) -> list[dict[str, Any]]:
    """Groups for an optimiser: of each parameter the rate is in proportion to its root mean square, `full` is that."""
    sizes = [rate * float(parameter.detach().square().mean().sqrt()) for parameter in parameters]
    return [{"params": [parameter], "lr": size, "full": size} for parameter, size in zip(parameters, sizes)]


def _own_norms(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters of norms by their names, from now on the model's own."""
    norms = {}
    for name, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            for own, parameter in list(module._parameters.items()):
                if parameter is not None:
                    norms[f"{name}.{own}"] = module._parameters[own] = torch.nn.Parameter(parameter.detach().clone())
    return norms
