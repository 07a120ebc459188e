"""The product as an operation of torch's: it is traced, compiled, exported and differentiated as torch's own are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from codegemm import gradients
from codegemm.arrays import check_float
from codegemm.devices import device_of
from codegemm.operands import check_place, result_shape, tracks, watch
from codegemm.torch.bound import bound_to, missing
from codegemm.torch.tensors import parse

# By hand, not by `torch.library.custom_op`, whose calls take twice as long.
_library = torch.library.Library("codegemm", "DEF")
_SCHEMAS = {
    "linear": "(Tensor x, Tensor[] tensors, str layout, Tensor? bias, str precision) -> Tensor",
    "linear_backward": "(Tensor g, Tensor[] tensors, str layout, str precision) -> Tensor",
}
_transforms = watch(torch)
_CAST = (torch.float16, torch.bfloat16, torch.float32)  # by autocast


def linear(
    x: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    layout: str,
    bias: torch.Tensor | None = None,
    precision: str = "full",
) -> torch.Tensor:
    """x @ W^T + bias for the weight W that tensors hold: x [..., K] -> [..., M] in its dtype; `codegemm::linear`.

    tensors, layout: as a `CodebookLinear` has them, or those of several, one after the other (`tensors.joined`). The
    weight and its plans are kept with the first tensor; changes of the tensors are seen, but for those through
    `.data` and those of tensors of inference mode. bias: [M], of any real dtype. precision: as of `codegemm.matmul`.

    x and bias may require grad: the gradients are g @ W and the sum of g's rows. The tensors have none. Derivatives in
    forward mode and `torch.func` work, too, but not of `torch.ops.codegemm.linear` itself, nor when compiled.
    """

    def times(x: Any, bias: Any) -> Any:
        return torch.ops.codegemm.linear.default(x, tensors, layout, bias, precision)

    if torch.compiler.is_compiling() or not _transforms():
        return times(x, bias)
    # Of operations torch.func differentiates none, and forward mode takes their derivatives for 0.
    _refuse(layout, [tracks(tensor) for tensor in tensors])
    return gradients.linear(x, bias, times, lambda g: _linear_backward(g, tensors, layout, precision))


def _linear_backward(g: Any, tensors: Sequence[Any], layout: str, precision: str) -> Any:
    """g @ W: g [..., M] -> [..., K] in its dtype."""
    return torch.ops.codegemm.linear_backward.default(g, tensors, layout, precision)


def _product(x: Any, tensors: Sequence[Any], layout: str, bias: Any, precision: str) -> Any:
    return bound_to(tensors, layout, precision).multiply(x, bias)


def _product_back(g: Any, tensors: Sequence[Any], layout: str, precision: str) -> Any:
    return bound_to(tensors, layout, precision).times(g)


def _like_product(x: Any, tensors: Sequence[Any], layout: str, bias: Any, precision: str) -> Any:
    check_float("x", x)
    check_place("x", x, device_of(tensors[0]))
    parsed = parse(layout)
    if torch.compiler.is_exporting():
        for tensor, (_, name) in zip(tensors, parsed.names):
            if not tensor.numel():
                raise missing(name)
    return x.new_empty(result_shape(x, parsed.shape))


def _like_product_back(g: Any, tensors: Sequence[Any], layout: str, precision: str) -> Any:
    return g.new_empty((*g.shape[:-1], parse(layout).shape[1]))


def is_watched(x: Any) -> bool:
    """Whether only the operation itself may happen: somebody traces, transforms or watches it, or x has no numbers."""
    return (
        torch.compiler.is_compiling()
        or x.is_meta
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or _transforms()
    )


def is_plain(x: Any, bias: Any, tensors: Sequence[Any] = ()) -> bool:
    """Whether torch has nothing to do with a product but to make it: no graph, no transformation, no other dtype or
    sign, and nobody who traces or watches."""
    return (
        type(x) is torch.Tensor
        and not is_watched(x)
        and not x.is_neg()
        and not (torch.is_grad_enabled() and torch._C._any_requires_grad(x, bias, *tensors))
        and not torch._C._is_torch_function_mode_enabled()
        and not torch._C._is_any_autocast_enabled()
    )


def autocast(x: Any) -> Any:
    """x in the dtype of autocast where that is on, as `torch.nn.Linear` takes it there: float64 stays."""
    device = x.device.type
    if x.dtype not in _CAST or device == "meta" or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, tensors, ctx.layout, bias, ctx.precision = inputs
    ctx.bias = None if bias is None else bias.dtype
    _keep_tensors(ctx, tensors)


def _back(ctx: Any, g: Any) -> tuple[Any, ...]:
    of_x, of_tensors, _, of_bias, _ = ctx.needs_input_grad
    tensors = _without_gradients(ctx, of_tensors)
    gradient = _linear_backward(g, tensors, ctx.layout, ctx.precision) if of_x else None
    total = g.reshape(-1, g.shape[-1]).sum(0, dtype=gradients.wide(ctx.bias)).to(ctx.bias) if of_bias else None
    return gradient, [None] * len(tensors), None, total, None


def _keep_back(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, tensors, ctx.layout, ctx.precision = inputs
    _keep_tensors(ctx, tensors)


def _back_again(ctx: Any, v: Any) -> tuple[Any, ...]:
    of_g, of_tensors, *_ = ctx.needs_input_grad
    tensors = _without_gradients(ctx, of_tensors)
    gradient = linear(v, tensors, ctx.layout, None, ctx.precision) if of_g else None
    return gradient, [None] * len(tensors), None, None


def _keep_tensors(ctx: Any, tensors: Sequence[Any]) -> None:
    ctx.save_for_backward(*tensors)
    ctx.tensors = tensors  # themselves, for hooks of saved tensors give back copies, without what the tensors carry


def _without_gradients(ctx: Any, wanted: Sequence[bool]) -> list[Any]:
    """The tensors; RuntimeError where a gradient of one is wanted, or one was written to since."""
    _refuse(ctx.layout, wanted)
    _ = ctx.saved_tensors
    return list(ctx.tensors)


def _refuse(layout: str, wanted: Sequence[bool]) -> None:
    """RuntimeError where a gradient of one of the tensors is wanted."""
    names = [name for (_, name), want in zip(parse(layout).names, wanted) if want]
    if names:
        raise RuntimeError(
            f"{', '.join(dict.fromkeys(names))}: codegemm::linear has no gradient of these: call requires_grad_(False)"
        )


for _name, _run, _like, _gradient, _saved in (
    ("linear", _product, _like_product, _back, _keep),
    ("linear_backward", _product_back, _like_product_back, _back_again, _keep_back),
):
    _library.define(_name + _SCHEMAS[_name], tags=(torch.Tag.pt2_compliant_tag,))
    for _backend in ("CPU", "CUDA"):
        _library.impl(_name, _run, _backend)
    torch.library.register_fake(f"codegemm::{_name}", _like, lib=_library)
    torch.library.register_autograd(f"codegemm::{_name}", _gradient, setup_context=_saved, lib=_library)
