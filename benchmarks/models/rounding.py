"""A model of transformers whose blocks have linear layers of integers, computed with as the floats that these stand
for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.models.integers import Integers, Rounded
from codegemm.calibration import Calibration
from codegemm.hf.blockwise.moments import ROWS, weights
from codegemm.hf.blockwise.skeleton import Skeleton
from codegemm.hf.blockwise.stages import run_until, stages
from codegemm.hf.blockwise.streams import chunks, first_inputs, way_of
from codegemm.hf.matrices import Matrix


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
    """The same with errors fed back by the layers' inputs: those that layers have when all before them, in the blocks
    before and in their own, are rounded already.

    ids: token ids [sequences, tokens]. progress: is told of each block that is done, and of how many there are.
    """
    parts = [ids[part].to(model.device) for part in chunks(*ids.shape)]
    states = [first_inputs(skeleton, model, part) for part in parts]
    way = way_of(skeleton, model, parts[0], parts[-1])
    taken = []
    for number, block in enumerate(model.get_submodule(skeleton.blocks)):
        layers = _linear(block)
        matrices = {name: Matrix(name, f"{name}.weight", layer.weight.shape, "") for name, layer in layers.items()}
        for stage in stages(block, matrices, *way.given(number, states[0])):
            firsts = [group[0] for group in stage.groups]
            seen = {name: Calibration(layers[name].in_features) for name in firsts}
            for hidden in states:
                run_until(block, firsts, partial(_add, seen), *way.given(number, hidden))
            for group in stage.groups:
                for name in group:
                    layer = layers[name]
                    rounded = integers.fed_back(_matrix(layer), seen[group[0]].H)
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


def _add(seen: Mapping[str, Calibration], name: str, x: torch.Tensor) -> None:
    """What a layer hears, x [rows, in_features]; rows that would be all that counts weigh as codegemm's own quantiser
    has them."""
    for rows in x.split(ROWS):
        factors, _ = weights(rows)
        seen[name].update(rows * factors)
