"""A model of transformers whose blocks have linear layers of integers, computed with as the floats that these stand
for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.models.integers import Integers, Rounded
from codegemm.calibration import Calibration
from codegemm.hf.blockwise.moments import ROWS, weights
from codegemm.hf.blockwise.skeleton import Skeleton
from codegemm.hf.blockwise.streams import chunks, first_inputs, way_of


def round_nearest(model: Any, skeleton: Skeleton, integers: Integers) -> float:
    """Round all linear layers of the model's blocks, in place; the bits of their weights in the mean. skeleton: of the
    model, which says where its blocks are."""
    taken = []
    for block in model.get_submodule(skeleton.blocks):
        for layer in _linear(block).values():
            taken.append((layer.weight.numel(), _put(layer, integers.nearest(_matrix(layer)))))
    return _mean(taken)


def round_fed_back(
    model: Any,
    skeleton: Skeleton,
    integers: Integers,
    ids: torch.Tensor,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """The same with errors fed back by the layers' inputs, block by block: those of a block are what the blocks before
    make of the text when they are rounded already.

    ids: token ids [sequences, tokens]. progress: is told of each block that is done, and of how many there are.
    """
    parts = [ids[part].to(model.device) for part in chunks(*ids.shape)]
    states = [first_inputs(skeleton, model, part) for part in parts]
    way = way_of(skeleton, model, parts[0], parts[-1])
    taken = []
    for number, block in enumerate(model.get_submodule(skeleton.blocks)):
        layers = _linear(block)
        with ExitStack() as hooks:
            seen = _watched(layers, hooks)
            for hidden in states:
                way.call(number, block, hidden)
        for name, layer in layers.items():
            rounded = integers.fed_back(_matrix(layer), seen[name].H)
            taken.append((layer.weight.numel(), _put(layer, rounded)))
        states = [way.call(number, block, hidden) for hidden in states]
        if progress is not None:
            progress(number + 1, skeleton.count)
    return _mean(taken)


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


def _watched(layers: Mapping[str, Any], hooks: ExitStack) -> dict[str, Calibration]:
    """What goes into each layer while the hooks are there; rows that would be all that counts weigh as codegemm's own
    quantiser has them."""
    seen = {name: Calibration(layer.in_features) for name, layer in layers.items()}
    for name, layer in layers.items():
        handle = layer.register_forward_pre_hook(lambda _, inputs, own=seen[name]: _add(own, inputs[0]))
        hooks.callback(handle.remove)
    return seen


def _add(seen: Calibration, x: torch.Tensor) -> None:
    for rows in x.detach().reshape(-1, seen.in_features).split(ROWS):
        factors, _ = weights(rows)
        seen.update(rows * factors)
