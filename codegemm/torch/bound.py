"""The weight that tensors hold and the plans that multiply by it, kept with the first of the tensors.

No number or name stands for a weight: a graph of torch's sees tensors alone, so that a compiled or exported one serves
every layer of a kind.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

from codegemm import choice, operands, products
from codegemm.arrays import check_float
from codegemm.formats.weight import Weight
from codegemm.kernel import Product
from codegemm.locks import ForkSafeLock
from codegemm.torch.tensors import Layout, parse, tensor_of, weight_of

_MAX_READY = 64  # of a weight: servers come with any number of rows
making = ForkSafeLock()  # held while tensors are let go of, put back or written to: threads may share a layer


@dataclass
class Attached:
    """What a tensor carries; it is neither copied nor pickled with it.

    bound: the weights of which it is the first tensor, by layout and precision. home: what has its content where it was
    let go of: a weight, the part of that and the tensor's name.
    """

    bound: dict[tuple[str, str], Bound] = field(default_factory=dict)
    home: tuple[Bound, int, str] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Attached:
        return Attached()

    def __reduce__(self) -> Any:
        return Attached, ()


def attached(tensor: Any) -> Attached:
    """What a tensor carries."""
    try:
        found: Attached = tensor._codegemm
    except AttributeError:
        found = tensor._codegemm = Attached()
    return found


def forget(tensor: Any) -> None:
    """Let it carry nothing."""
    vars(tensor).pop("_codegemm", None)


def content(tensor: Any, name: str) -> Any:
    """The tensor itself, or made anew where it was let go of; ValueError where nobody knows what was in it."""
    if tensor.numel():
        return tensor
    home = attached(tensor).home
    if home is None:
        raise missing(name)
    bound, part, name = home
    return bound.content(part, name)


def missing(name: str) -> ValueError:
    """What to raise for a tensor that was let go of."""
    return ValueError(
        f"{name}: empty, for a kernel holds it in an order of its own; a CodebookLinear's state_dict() has it, and "
        "restore() puts it back, as before torch.export"
    )


def bound_to(tensors: Sequence[Any], layout: str, precision: str) -> Bound:
    """What multiplies by the weight of these tensors: made at the first call, and when they were changed."""
    carried, key, states = attached(tensors[0]).bound, (layout, precision), _states(tensors)
    bound = carried.get(key)
    if bound is None or bound.states != states:
        with making:
            bound = carried.get(key)
            if bound is None or bound.states != states:
                bound = carried[key] = Bound(tensors, parse(layout), precision)
    return bound


def settle(tensors: Sequence[Any], layout: str, precision: str, n: int, dtype: torch.dtype) -> list[Any]:
    """Hold codes once, in the order of the kernel for n rows of x: what is to take the place of the tensors."""
    bound = bound_to(tensors, layout, precision)
    with making:
        settled = bound.settle(tensors, n, dtype)
        attached(settled[0]).bound[layout, precision] = bound
    return settled


@dataclass
class _Ready:
    """y's shape, a plan (None where y is empty), the bias that it adds, so that no other comes to lie there, and the
    states of that."""

    shape: tuple[int, ...]
    plan: products.Plan | None
    bias: Any = None
    states: list[tuple[int, int]] | None = None


class Bound:
    """A weight on the memory of tensors, with plans for each thread. states: of the tensors."""

    def __init__(self, tensors: Sequence[Any], layout: Layout, precision: str) -> None:
        self.settled = False
        self._layout, self._precision = layout, precision
        self._ready: dict[Any, _Ready] = {}  # by thread, x's shape and dtype, and whether there is a bias
        self.states = _states(tensors)
        there = [content(tensor, name) for tensor, (_, name) in zip(tensors, layout.names, strict=True)]
        self._held: list[Any] = [tensor.detach() for tensor in there]  # so that nothing else comes to lie there
        self.weight: Weight = weight_of(there, layout)

    def settle(self, tensors: Sequence[Any], n: int, dtype: torch.dtype) -> list[Any]:
        """The tensors, empty ones in place of those that the weight now lets go of."""
        kernel = products.compact(self.weight, n, dtype, precision=self._precision)
        self._ready, self.settled, settled = {}, True, list(tensors)
        for i, (part, name) in enumerate(self._layout.names):
            if name in kernel.rearranged:
                with torch.inference_mode(False):
                    empty = torch.empty(0, dtype=tensors[i].dtype, device=tensors[i].device)
                    settled[i] = torch.nn.Parameter(empty, requires_grad=False)
                attached(settled[i]).home = self, part, name
                self._held[i] = None
        self.states = _states(settled)
        return settled

    def content(self, part: int, name: str) -> Any:
        """A part's tensor of that name, made anew."""
        weight = self.weight if len(self._layout.parts) == 1 else self.weight[self._layout.rows[part]]
        with torch.inference_mode(False):
            return tensor_of(weight.stored().tensors[name]).to(self.weight.device)

    def multiply(self, x: Any, bias: Any) -> Any:
        """x @ W^T + bias: x [..., K] -> [..., M], contiguous and in its dtype."""
        key = threading.get_ident(), x.shape, x.dtype, bias is None
        ready = self._ready.get(key) or self._make_ready(key, x, bias)
        y = x.new_empty(ready.shape)
        if ready.plan is None:
            return y
        if bias is not None:
            states = _states([bias])
            if states != ready.states or bias.is_inference():
                ready.plan.bias, ready.bias, ready.states = bias, bias.detach(), states
        ready.plan(x, out=y)
        return y

    def times(self, g: Any) -> Any:
        """g @ W: g [..., M] -> [..., K] in its dtype."""
        return products.back(self.weight, g)

    def _make_ready(self, key: Any, x: Any, bias: Any) -> _Ready:
        check_float("x", x)
        shape = operands.result_shape(x, self._layout.shape)
        operands.check_place("x", x, self.weight.device)
        plan = None
        if rows := prod(shape[:-1]):
            product = Product.of(self.weight.spec, rows, x.dtype)
            kernel = choice.select(product, self.weight.device, "auto", self._precision)
            plan = products.Plan(self.weight, product, kernel, bias, exact=True)
        if len(self._ready) >= _MAX_READY:
            self._ready = {}
        ready = self._ready[key] = _Ready(shape, plan)
        return ready


def _states(tensors: Sequence[Any]) -> list[tuple[int, int]]:
    """Others when one gets other numbers, as far as torch counts that: not of a tensor of inference mode. Those that
    were let go of have no address, and are told apart by themselves."""
    try:
        return [(tensor.data_ptr() or id(tensor), tensor._version) for tensor in tensors]
    except RuntimeError:
        return [
            (tensor.data_ptr() or id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in tensors
        ]
