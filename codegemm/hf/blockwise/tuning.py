"""A quantised block, trained to give what the original block gives: codes stay, codebooks and scales change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from codegemm.formats.weight import Weight
from codegemm.hf.blockwise.group import Group
from codegemm.hf.blockwise.moments import weights as row_weights
from codegemm.hf.blockwise.streams import Streams, Way
from codegemm.hf.distillation.student import Student, by_size

_BETAS = (0.9, 0.95)
RATE = 4e-3  # of a step, in root mean squares of what changes; it falls to nothing


@dataclass(frozen=True)
class Tuned:
    """weights: by the names of the layers in the block. before, after: |y - y'|^2 / |y|^2 of the block's outputs y, in
    the first tenth of the steps and in the last."""

    weights: Mapping[str, Weight]
    before: float
    after: float


def tune(
    number: int,
    dense: torch.nn.Module,
    made: torch.nn.Module,
    weights: Mapping[str, Weight],
    streams: Streams,
    way: Way,
    steps: int,
    group: Group,
) -> Tuned:
    """Train a block on `steps` batches, each of a part of every shard. All processes take the same steps: gradients are
    added up in the order of the shards. made: is changed."""
    student = Student.of(made, iter(weights.items()), norms=False)
    parameters = student.trained
    device = parameters[0].device
    optimizer = torch.optim.Adam(by_size(parameters, RATE), betas=_BETAS)
    errors = []
    for step in range(steps):
        for own in optimizer.param_groups:
            own["lr"] = own["full"] * (1 - step / steps)
        total, whole = 0.0, 0.0
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for shard, parts in enumerate(streams.parts):
            if not parts:
                continue
            found = None
            if shard in streams.own:
                part = parts[step % len(parts)]
                states = streams.original[part].to(device), streams.quantised[part].to(device)
                found = _gradients(number, (dense, made), parameters, states, way)
            wrong, size, gradients = group.share(found, group.owner(shard))
            total, whole = total + wrong, whole + size
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad += gradient.to(device)
        optimizer.step()
        errors.append(total / whole)
    tenth = max(steps // 10, 1)
    return Tuned(student.weights(), sum(errors[:tenth]) / tenth, sum(errors[-tenth:]) / tenth)


def _gradients(
    number: int,
    blocks: tuple[torch.nn.Module, torch.nn.Module],
    parameters: Sequence[torch.nn.Parameter],
    states: tuple[torch.Tensor, torch.Tensor],
    way: Way,
) -> tuple[float, float, list[torch.Tensor]]:
    """|y - y'|^2 and |y|^2 of a part of the text, long rows weighed as in `moments`, and the gradients of the first."""
    original, quantised = states
    right = way.call(number, blocks[0], original)
    inputs, named = way.given(number, quantised)
    with torch.enable_grad():
        found = blocks[1](*inputs, **named)
        y = found[0] if isinstance(found, tuple) else found
        factors, _ = row_weights(right.flatten(0, -2))
        wrong = ((y - right).flatten(0, -2) * factors).square().sum()
        # Experts that no token of the part goes to have none.
        gradients = torch.autograd.grad(wrong, list(parameters), allow_unused=True, materialize_grads=True)
    whole = (right.flatten(0, -2) * factors).square().sum()
    return float(wrong.detach()), float(whole), [each.cpu() for each in gradients]
