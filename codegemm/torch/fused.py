"""Several layers with the same input, like q, k and v, whose outputs one product makes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from codegemm import gradients
from codegemm.formats.weight import same
from codegemm.torch import op
from codegemm.torch.bound import bound_to, making, settle
from codegemm.torch.tensors import joined
from codegemm.torch.traces import Traces


@dataclass
class _Made:
    """A product that not all layers have taken their part of. x is kept, so that no other comes to be where it is."""

    x: torch.Tensor
    state: tuple[Any, ...]  # x's version, whether there is a graph, and the dtype of autocast
    y: torch.Tensor
    waiting: set[int]


class Fused:
    """Layers [M_i, K] whose weights are multiplied as one: the first that is called makes the outputs of all.

    The others take theirs if they are called by the same thread with the same tensor, unchanged. Each keeps its own
    parameters and its own state_dict.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        """layers: CodebookLinears of one precision on one device whose weights `codegemm.concat` joins; ValueError or
        TypeError for others."""
        same("precision", [layer.precision for layer in layers])
        self.layers = tuple(layers)
        self.precision = layers[0].precision
        self.layout = joined([layer.layout for layer in layers])
        self._ends = tuple(accumulate(layer.out_features for layer in layers))
        self._made: dict[int, _Made] = {}  # by thread
        self._traced: tuple[torch.Tensor, torch.Tensor, tuple[int, ...]] | None = None
        self._traces = Traces()
        bound_to(self._tensors(), self.layout, self.precision)  # raises where they can't be joined

    def product(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """The output of one of the layers."""
        number = next(i for i, each in enumerate(self.layers) if each is layer)
        if torch.compiler.is_compiling():
            return self._traced_product(number, x)
        thread, device = threading.get_ident(), x.device.type
        is_cast = device != "meta" and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_cast else x.dtype
        state = -1 if x.is_inference() else x._version, torch.is_grad_enabled(), dtype
        made = self._made.get(thread)
        if made is None or made.x is not x or made.state != state or number not in made.waiting:
            if not op.is_watched(x) and not bound_to(self._tensors(), self.layout, self.precision).settled:
                self.prepare(1, dtype)
            made = _Made(x, state, self._all(x), set(range(len(self.layers))))
            self._made[thread] = made
        made.waiting.discard(number)
        if not made.waiting:
            del self._made[thread]
        return self._part(made.y, number)

    def _traced_product(self, number: int, x: torch.Tensor) -> torch.Tensor:
        """The same, of plain values alone, which tracing follows: one call in the graph."""
        import codegemm.torch.constants  # noqa: F401  # `is_new` is one

        # What an earlier trace left is not to be taken: by the next call x has other numbers, or a graph of gradients.
        new = self._traces.is_new()
        if new or self._traced is None or self._traced[0] is not x or number not in self._traced[2]:
            self._traced = x, self._all(x), tuple(range(len(self.layers)))
        x, y, waiting = self._traced
        waiting = tuple(each for each in waiting if each != number)
        self._traced = (x, y, waiting) if waiting else None
        return self._part(y, number)

    def prepare(self, n: int, dtype: torch.dtype) -> None:
        """Have the layers hold codes once, in the order of the kernel for n rows of x."""
        with making:
            settled = iter(settle(self._tensors(), self.layout, self.precision, n, dtype))
            for layer in self.layers:
                layer.take([next(settled) for _ in layer.tensors()])

    def dissolve(self) -> None:
        """Have the layers multiplied each by itself again."""
        for layer in self.layers:
            layer._fused = None

    def _all(self, x: torch.Tensor) -> torch.Tensor:
        tensors, bias, x = self._tensors(), self._bias(), op.autocast(x)
        if op.is_plain(x, bias):
            return bound_to(tensors, self.layout, self.precision).multiply(x, bias)
        return op.linear(x, tensors, self.layout, bias, self.precision)

    def _part(self, y: torch.Tensor, number: int) -> torch.Tensor:
        end, rows = self._ends[number], self.layers[number].out_features
        return y[..., end - rows : end]

    def _tensors(self) -> list[torch.Tensor]:
        return [tensor for layer in self.layers for tensor in layer.tensors()]

    def _bias(self) -> torch.Tensor | None:
        given = [layer.bias for layer in self.layers if layer.bias is not None]
        if not given:
            return None
        # Those of half the bits in float32: autocast joins none of the half type that is not its own.
        zeros = given[0].new_zeros
        return torch.cat([
            zeros(layer.out_features) if layer.bias is None else layer.bias.to(gradients.wide(layer.bias.dtype))
            for layer in self.layers
        ])  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_made": {}, "_traced": None, "_traces": Traces()}
