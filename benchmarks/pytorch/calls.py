"""What a call costs beside its work: a weight so small that there is hardly any."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

import codegemm
from benchmarks.pytorch.rounds import Seconds, run
from codegemm.formats import random_weight
from codegemm.torch import CodebookLinear, linear

SHAPE, CONFIG = (64, 128), "m1v4g128"
PLAN, LAYER, OPERATION, EMPTY, DENSE = (
    "plan, out=", "CodebookLinear", "codegemm::linear", "an operation that does nothing", "nn.Linear",
)  # fmt: skip
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@contextlib.contextmanager
def empty_operation() -> Iterator[Any]:
    """Registered as `codegemm::linear` is, with a gradient, and of the same arguments; it only makes its result."""
    with contextlib.ExitStack() as stack:
        library = torch.library.Library("codegemm_empty", "DEF")
        stack.callback(library._destroy)
        library.define("linear(Tensor x, Tensor[] tensors, str layout, Tensor? bias, str precision) -> Tensor")

        def made(x: Any, tensors: Sequence[Any], layout: str, bias: Any, precision: str) -> Any:
            return x.new_empty((1, SHAPE[0]))

        library.impl("linear", made, "CPU")
        torch.library.register_autograd("codegemm_empty::linear", lambda ctx, g: None, lib=library)
        yield torch.ops.codegemm_empty.linear.default


def measure(rounds: int, each: int) -> dict[str, Seconds]:
    """The seconds of calls of one row, by mode and name."""
    weight = random_weight(SHAPE, CONFIG)
    layer, dense = CodebookLinear(weight), torch.nn.Linear(*SHAPE[::-1], bias=False)
    plan, x, y = codegemm.plan(weight), torch.randn(1, SHAPE[1]), torch.empty(1, SHAPE[0])
    measured = {}
    with empty_operation() as empty:
        for name, mode in MODES.items():
            with mode():
                layer(x)
                tensors = layer.tensors()
                calls = {
                    PLAN: lambda: plan(x, out=y),
                    LAYER: lambda: layer(x),
                    OPERATION: lambda tensors=tensors: linear(x, tensors, layer.layout),
                    EMPTY: lambda tensors=tensors: empty(x, tensors, layer.layout, None, "full"),
                    DENSE: lambda: dense(x),
                }
                measured[name] = run(calls, rounds, each)
    return measured
