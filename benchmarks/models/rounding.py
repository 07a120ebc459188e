"""A model of transformers whose blocks have linear layers of integers, computed with as the floats that these stand
for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.models.integers import Integers, Rounded
from codegemm.calibration import Calibration

_BATCH = 8  # sequences at a time


def round_nearest(model: Any, integers: Integers) -> float:
    """Round all linear layers of the model's blocks, in place; the bits of their weights in the mean."""
    taken = []
    for block in blocks_of(model):
        for layer in _linear(block).values():
            taken.append((layer.weight.numel(), _put(layer, integers.nearest(_matrix(layer)))))
    return _mean(taken)


def round_fed_back(
    model: Any, integers: Integers, ids: torch.Tensor, progress: Callable[[int, int], None] | None = None
) -> float:
    """The same with errors fed back by the layers' inputs, block by block: those of a block are what the blocks before
    make of the text when they are rounded already.

    ids: token ids [sequences, tokens]. progress: is told of each block that is done, and of how many there are.
    """
    blocks = blocks_of(model)
    parts, arguments = _captured(model, blocks[0], ids)
    taken = []
    with torch.no_grad():
        for number, block in enumerate(blocks, 1):
            layers = _linear(block)
            with ExitStack() as hooks:
                seen = _watched(layers, hooks)
                for part, others in zip(parts, arguments):
                    block(part, **others)
            for name, layer in layers.items():
                rounded = integers.fed_back(_matrix(layer), seen[name].H)
                taken.append((layer.weight.numel(), _put(layer, rounded)))
            parts = [_hidden(block(part, **others)) for part, others in zip(parts, arguments)]
            if progress is not None:
                progress(number, len(blocks))
    return _mean(taken)


def blocks_of(model: Any) -> torch.nn.ModuleList:
    """The list of blocks that a causal model's text passes through; ValueError for a decoder without `layers`."""
    blocks = getattr(model.get_decoder(), "layers", None)
    if not isinstance(blocks, torch.nn.ModuleList):
        raise ValueError(f"{type(model).__name__}: its decoder has no list of blocks called `layers`")
    return blocks


def _linear(block: torch.nn.Module) -> dict[str, Any]:
    return {name: module for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)}


def _matrix(layer: Any) -> Any:
    return layer.weight.detach().float().cpu().numpy()


def _put(layer: Any, rounded: Rounded) -> float:
    """Have the layer the rounded matrix; its bits."""
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(rounded.matrix))
    return rounded.bits_per_weight


def _mean(taken: list[tuple[int, float]]) -> float:
    return sum(count * bits for count, bits in taken) / sum(count for count, _ in taken)


class _Reached(Exception):
    """The first block has got its inputs."""


def _captured(model: Any, first: Any, ids: torch.Tensor) -> tuple[list[torch.Tensor], list[Mapping[str, Any]]]:
    """What the first block is called with, for each batch: the text's vectors, and all else."""
    parts: list[torch.Tensor] = []
    arguments: list[Mapping[str, Any]] = []

    def stop(module: Any, inputs: tuple[torch.Tensor, ...], others: Mapping[str, Any]) -> None:
        parts.append(inputs[0])
        arguments.append(others)
        raise _Reached

    hook = first.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            for batch in ids.to(model.device).split(_BATCH):
                try:
                    model(input_ids=batch, use_cache=False)
                except _Reached:
                    continue
    finally:
        hook.remove()
    return parts, arguments


def _watched(layers: Mapping[str, Any], hooks: ExitStack) -> dict[str, Calibration]:
    """What goes into each layer while the hooks are there."""
    seen = {name: Calibration(layer.in_features) for name, layer in layers.items()}
    for name, layer in layers.items():
        add = seen[name].update
        handle = layer.register_forward_pre_hook(lambda _, inputs, add=add: add(inputs[0]))
        hooks.callback(handle.remove)
    return seen


def _hidden(output: Any) -> torch.Tensor:
    """Of a block: its vectors, which some blocks have first in a tuple."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
