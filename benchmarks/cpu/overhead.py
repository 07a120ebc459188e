"""python -m benchmarks.cpu.overhead [--json FILE] [--quick], from the repository's root.

Prints what a product costs beside its kernel: calls of a kernel whose C++ does nothing, so that what is left is the
package's own Python, its checks and the way into compiled code. Calls take turns with each other and with a real
product; there are many of them in a row, and one right behind the real product, which has replaced what was in cache.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import codegemm
from benchmarks.arguments import parse
from benchmarks.targets import Outcome
from codegemm.arrays import to_torch
from codegemm.devices import Device
from codegemm.engines import declarations
from codegemm.engines.cpu import library
from codegemm.engines.cpu.kernel import CpuKernel, Prepared
from codegemm.formats import random_weight
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Cost, Product
from codegemm.reporting import format_time, new_table, open_console, write_json

# Seconds of a call in a row, at most.
PLANNED, MULTIPLIED = 8e-6, 15e-6
SHAPE, CONFIG = (4096, 4096), "m1v4g128"
CALLS = {
    "plan(x, out=y)": PLANNED,
    "plan(x)": MULTIPLIED,
    "x @ w.T": MULTIPLIED,
    "matmul(x, w.T)": MULTIPLIED,
    "linear(x, w, bias)": MULTIPLIED,
}
OPERANDS = (("numpy", "float32"), ("numpy", "float16"), ("torch", "float32"), ("torch", "bfloat16"))
_ROW, _WARM_UP = 20, 20  # calls: few enough for most rows to be undisturbed
_SOURCE = Path(__file__).parent / "empty.cpp"
_EmptyArgs = declarations.structure(_SOURCE, "EmptyArgs")


@dataclass(frozen=True)
class Overhead:
    """A kind of call. library, dtype: of x. seconds: of a call in a row, in each round. behind: of the one behind a
    real product. allowed: seconds in a row, at most."""

    call: str
    library: str
    dtype: str
    biased: bool
    seconds: tuple[float, ...]
    behind: tuple[float, ...]
    allowed: float

    def __str__(self) -> str:
        bias = ", biased" if self.biased and "bias" not in self.call else ""
        return f"{self.call}{bias}, {self.library} {self.dtype}"


class Empty(CpuKernel[CodebookSpec, CodebookWeight]):
    """Multiplies nothing, in no time: `auto` takes it as long as it is registered."""

    name = "empty"
    weights = CodebookWeight
    automatic = True
    source, entry, structure = _SOURCE, "empty", _EmptyArgs

    def prepare(self, weight: CodebookWeight, device: Device) -> Prepared[CodebookSpec]:
        return Prepared(weight.spec, library.Arguments(_EmptyArgs, {}))

    def run_numpy(self, prepared: Any, x: Any, out: Any, workspace: Any) -> None:
        raise RuntimeError("the empty kernel needs a C++ compiler")

    def workspace(self, product: Product[CodebookSpec], device: Device) -> int:
        return product.x_bytes

    def cost(self, product: Product[CodebookSpec], device: Device) -> Cost:
        return Cost(1, 1)

    def estimate(self, product: Product[CodebookSpec], device: Device) -> float:
        return 0.0


def measure(rounds: int = 200) -> list[Overhead]:
    """Of every kind of call, for one row of x; tensors where torch is installed."""
    weight = random_weight(SHAPE, CONFIG, 0)
    product = codegemm.plan(weight, 1, kernel="psumbook")
    x, y = np.ones((1, SHAPE[1]), np.float32), np.empty((1, SHAPE[0]), np.float32)
    real = partial(product, x, out=y)
    operands = [which for which in OPERANDS if importlib.util.find_spec(which[0])]
    with _registered():
        calls = {(kind, biased, *which): call for which in operands for kind, biased, call in _calls(weight, *which)}
        found: dict[Any, tuple[list[float], list[float]]] = {key: ([], []) for key in calls}
        for call in calls.values():
            call()
        for _ in range(rounds):
            for key, call in calls.items():
                real()
                row, behind = found[key]
                behind.append(_time(call, 1))
                for _ in range(_WARM_UP):
                    call()
                row.append(_time(call, _ROW))
    return [
        Overhead(kind, name, dtype, biased, tuple(row), tuple(behind), CALLS[kind])
        for (kind, biased, name, dtype), (row, behind) in found.items()
    ]


def outcomes(found: list[Overhead]) -> list[Outcome]:
    """Of every kind of call, whether its median in a row is what it may be, in multiples of what is allowed."""
    return [
        Outcome(f"{each}: at most {format_time(each.allowed)}", each.allowed / statistics.median(each.seconds), 1)
        for each in found
    ]


def print_table(found: list[Overhead]) -> None:
    """Medians and quartiles."""
    table = new_table(
        "A product beside its kernel", "call", ">in a row", ">quartiles", ">behind a product", ">allowed", ">met"
    )
    for each, outcome in zip(found, outcomes(found), strict=True):
        lower, upper = np.percentile(each.seconds, (25, 75))
        spread = f"{format_time(lower)} to {format_time(upper)}"
        medians = (format_time(statistics.median(times)) for times in (each.seconds, each.behind))
        row, behind = medians
        table.add_row(str(each), row, spread, behind, format_time(each.allowed), "yes" if outcome.is_met else "no")
    open_console().print(table)


def main(arguments: list[str] | None = None) -> int:
    """Always 0: a target that is missed is told."""
    chosen = parse("benchmarks.cpu.overhead", __doc__, "the same calls", arguments)
    found = measure(3 if chosen.quick else 200)
    print_table(found)
    if chosen.json is not None:
        targets = [asdict(outcome) | {"is_met": outcome.is_met} for outcome in outcomes(found)]
        write_json({"overheads": found, "targets": targets}, chosen.json)
    return 0


@contextmanager
def _registered() -> Iterator[None]:
    kernel = codegemm.register_kernel(Empty())
    try:
        yield
    finally:
        codegemm.unregister_kernel(kernel.full_name)


def _calls(weight: CodebookWeight, name: str, dtype: str) -> Iterator[tuple[str, bool, Callable[[], Any]]]:
    """Each kind of call, with and without a bias where it may have one."""
    product = Product.of(weight.spec, 1, dtype)
    arrays = (
        np.ones((1, SHAPE[1]), product.dtype),
        np.empty((1, SHAPE[0]), product.dtype),
        np.ones(SHAPE[0], np.float32),
    )
    x, y, bias = map(to_torch, arrays) if name == "torch" else arrays
    transposed = weight.T
    for added in (None, bias):
        plan = codegemm.plan(weight, 1, dtype, bias=added)
        yield "plan(x, out=y)", added is not None, partial(plan, x, out=y)
        yield "plan(x)", added is not None, partial(plan, x)
    yield "x @ w.T", False, lambda: x @ transposed
    yield "matmul(x, w.T)", False, lambda: codegemm.matmul(x, transposed)
    yield "linear(x, w, bias)", True, lambda: codegemm.linear(x, weight, bias)


def _time(call: Callable[[], Any], count: int) -> float:
    """Seconds of one of `count` calls in a row."""
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count


if __name__ == "__main__":
    sys.exit(main())
