"""The product as an operation of torch's: it is traced, compiled, exported and differentiated as torch's own are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from codegemm.gradients import wide
from codegemm.operands import transforms
from codegemm.torch.bound import bound_to
from codegemm.torch.tensors import parse

# By hand, not by `torch.library.custom_op`, whose calls take twice as long.
_library = torch.library.Library("codegemm", "DEF")
_SCHEMAS = {
    "linear": "(Tensor x, Tensor[] tensors, str layout, Tensor? bias, str precision) -> Tensor",
    "linear_backward": "(Tensor g, Tensor[] tensors, str layout, str precision) -> Tensor",
}


def linear(
    x: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    layout: str,
    bias: torch.Tensor | None = None,
    precision: str = "full",
) -> torch.Tensor:
    """x @ W^T + bias for the weight W that tensors hold: x [..., K] -> [..., M] in its dtype; `codegemm::linear`.

    tensors, layout: as a `CodebookLinear` has them, or those of several, one after the other (`tensors.joined`). The
    weight and its plans are kept with the first tensor; changes of the tensors are seen, but for those of tensors of
    inference mode. bias: [M], of any real dtype. precision: as of `codegemm.matmul`.

    x and bias may require grad: the gradients are g @ W and the sum of g's rows. The tensors have none.
    """
    return torch.ops.codegemm.linear.default(x, tensors, layout, bias, precision)


def _linear_backward(g: Any, tensors: Sequence[Any], layout: str, precision: str) -> Any:
    """g @ W: g [..., M] -> [..., K] in its dtype."""
    return torch.ops.codegemm.linear_backward.default(g, tensors, layout, precision)


def _product(x: Any, tensors: Sequence[Any], layout: str, bias: Any, precision: str) -> Any:
    return bound_to(tensors, layout, precision).multiply(x, bias)


def _product_back(g: Any, tensors: Sequence[Any], layout: str, precision: str) -> Any:
    return bound_to(tensors, layout, precision).times(g)


def _like_product(x: Any, tensors: Sequence[Any], layout: str, bias: Any, precision: str) -> Any:
    rows, columns = parse(layout).shape
    torch._check(x.shape[-1] == columns, lambda: f"x: its last axis must be in_features={columns} of the weight")
    return x.new_empty((*x.shape[:-1], rows))


def _like_product_back(g: Any, tensors: Sequence[Any], layout: str, precision: str) -> Any:
    return g.new_empty((*g.shape[:-1], parse(layout).shape[1]))


def is_plain(x: Any, bias: Any) -> bool:
    """Whether torch has nothing to do with a product but to make it: no graph, no transformation, no other dtype, and
    nobody who traces or watches."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is torch.Tensor
        and not (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)))
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_torch_function_mode_enabled()
        and torch._C._get_tracing_state() is None
        and not torch._C._is_any_autocast_enabled()
        and not transforms(torch)
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, tensors, ctx.layout, bias, ctx.precision = inputs
    ctx.bias = None if bias is None else bias.dtype
    ctx.save_for_backward(*tensors)


def _back(ctx: Any, g: Any) -> tuple[Any, ...]:
    of_x, of_tensors, _, of_bias, _ = ctx.needs_input_grad
    tensors = _without_gradients(ctx, of_tensors)
    gradient = _linear_backward(g, tensors, ctx.layout, ctx.precision) if of_x else None
    total = g.reshape(-1, g.shape[-1]).sum(0, dtype=wide(ctx.bias)).to(ctx.bias) if of_bias else None
    return gradient, [None] * len(tensors), None, total, None


def _keep_back(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, tensors, ctx.layout, ctx.precision = inputs
    ctx.save_for_backward(*tensors)


def _back_again(ctx: Any, v: Any) -> tuple[Any, ...]:
    of_g, of_tensors, *_ = ctx.needs_input_grad
    tensors = _without_gradients(ctx, of_tensors)
    gradient = linear(v, tensors, ctx.layout, None, ctx.precision) if of_g else None
    return gradient, [None] * len(tensors), None, None


def _without_gradients(ctx: Any, wanted: Sequence[bool]) -> list[Any]:
    """The tensors; RuntimeError where a gradient of one is wanted."""
    names = [name for (_, name), want in zip(parse(ctx.layout).names, wanted) if want]
    if names:
        raise RuntimeError(
            f"{', '.join(dict.fromkeys(names))}: codegemm::linear has no gradient of these: call requires_grad_(False)"
        )
    return list(ctx.saved_tensors)


for _name, _run, _like, _gradient, _saved in (
    ("linear", _product, _like_product, _back, _keep),
    ("linear_backward", _product_back, _like_product_back, _back_again, _keep_back),
):
    _library.define(_name + _SCHEMAS[_name], tags=(torch.Tag.pt2_compliant_tag,))
    for _backend in ("CPU", "CUDA"):
        _library.impl(_name, _run, _backend)
    torch.library.register_fake(f"codegemm::{_name}", _like, lib=_library)
    torch.library.register_autograd(f"codegemm::{_name}", _gradient, setup_context=_saved, lib=_library)
