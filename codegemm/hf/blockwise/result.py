"""What became of a model, or would become of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from codegemm.destination import Destination
from codegemm.formats.format import spec_of
from codegemm.hf.blockwise.matrix import Layer
from codegemm.hf.blockwise.report import bits_per_weight
from codegemm.hf.blockwise.skeleton import Skeleton
from codegemm.hf.blockwise.streams import bytes_needed
from codegemm.hf.blockwise.text import Text
from codegemm.hf.matrices import Plan


@dataclass(frozen=True)
class QuantizedModel:
    """What became of a model. layers: in the order in which the model has them. bits_per_weight: over all of them,
    everything counted. resumed: how many of them an earlier run had finished. left_out: files that were not copied.
    state_bytes, block_bytes: what hidden states and the largest block take, the latter in each process.
    """

    path: Path
    layers: tuple[Layer, ...]
    dense: tuple[str, ...]
    source_bytes: int
    target_bytes: int
    tokens: int
    resumed: int = 0
    left_out: tuple[str, ...] = ()
    state_bytes: int = 0
    block_bytes: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Over all quantised matrices."""
        return bits_per_weight(self.layers)


def planned(skeleton: Skeleton, made: Plan, place: Destination, text: Text | None) -> QuantizedModel:
    """What would be done."""
    layers = [
        Layer(
            each.name, each.config, each.shape, spec_of(each.shape, each.config).bits_per_weight, 0.0, None, 0, 0, 0.0
        )
        for each in made.matrices.values()
    ]
    before = sum(skeleton.source.tensors[key].nbytes for name in made.by_parameter for key in skeleton.keys[name])
    after = sum(round(each.bits_per_weight * prod(each.shape) / 8) for each in layers)
    return QuantizedModel(
        place.path, tuple(layers), tuple(made.dense), skeleton.source.nbytes, skeleton.source.nbytes - before + after,
        0 if text is None else text.ids.numel(), 0, place.left_out, *bytes_taken(skeleton, text),
    )  # fmt: skip


def bytes_taken(skeleton: Skeleton, text: Text | None) -> tuple[int, int]:
    """What hidden states and a block take."""
    width = skeleton.model.config.get_text_config().hidden_size
    states = 0 if text is None else bytes_needed(text.ids.numel(), width)
    return states, skeleton.block_bytes()
