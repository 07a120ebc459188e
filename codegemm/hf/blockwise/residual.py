"""Which matrices of a block write to the stream of hidden states as it is: they can make good what that has lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

BLOCK = ""  # as a module: what the block itself gets
_SAME, _OF_PRODUCT = 1e-5, 1e-2  # of their norms


def streams(
    block: torch.nn.Module, matrices: Iterable[str], inputs: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, str]:
    """Of the matrices whose products a call of the block adds, without more, to what a module has as its input: the
    name of that module. Llama's `o_proj` adds to the block's own input, `down_proj` to that of the second norm.

    Found by what is equal to what, so that no architecture needs to be known; where nothing is, as with norms behind
    the matrices, there is nothing to be made good.
    """
    hidden: torch.Tensor = inputs[0]
    given: list[tuple[str, torch.Tensor]] = [(BLOCK, hidden)]
    products: list[tuple[str, torch.Tensor]] = []

    def note(held: list[tuple[str, torch.Tensor]], name: str, x: Any) -> None:
        if isinstance(x, torch.Tensor) and x.shape == hidden.shape:
            held.append((name, x.clone()))

    with ExitStack() as hooks, torch.no_grad():
        for name, module in block.named_modules():
            if name:
                hooks.enter_context(
                    module.register_forward_pre_hook(lambda _, x, name=name: note(given, name, x[0] if x else None))
                )
        for name in matrices:
            layer = block.get_submodule(name)
            hooks.enter_context(layer.register_forward_hook(lambda _, x, y, name=name: note(products, name, y)))
        found = block(*inputs, **kwargs)
    sums = [x for _, x in given[1:]] + [found[0] if isinstance(found, tuple) else found]
    stream, names = given[:1], {}
    for name, y in products:
        for module, before in stream:
            if any(_is_sum(x, before, y) for x in sums):
                names[name] = module
                stream += [(other, x) for other, x in given if _is_sum(x, before, y)][:1]
                break
    return names


def _equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    return bool((x - y).norm() <= _SAME * y.norm())


def _is_sum(x: torch.Tensor, before: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether x is before + y: nearer to it than y is long, however little that is beside the rest."""
    return bool((x - (before + y)).norm() <= _OF_PRODUCT * y.norm()) and _equal(x, before + y) and bool(y.any())
