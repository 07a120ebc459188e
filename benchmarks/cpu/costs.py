"""python -m benchmarks.cpu.costs [--write] [--quick], from the repository's root.

What pieces of the kernels' work take with this processor's instructions (CODEGEMM_CPU=avx2: with others): that is what
`auto` chooses by. Products are timed on one thread, large weights out of cache, and solved for their pieces by least
squares of relative errors. Prints them and how far products are from their sum; --write puts them into
codegemm/engines/cpu/costs.json, in place of the last ones of the same instructions.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.table import Table

from codegemm.devices import CPU
from codegemm.engines.cpu import costs, device, isa
from codegemm.engines.cpu.costs import Work
from codegemm.engines.cpu.kernel import CpuKernel
from codegemm.engines.cpu.transformed import CpuTransformed
from codegemm.formats.format import random_weight, spec_of
from codegemm.kernel import Kernel, Product
from codegemm.measuring import accuracy, conditions
from codegemm.products import Plan
from codegemm.registry import kernel_for, refusal, registered
from codegemm.reporting import by, format_time, new_table, open_console

Shape = tuple[int, int]
SHAPES: tuple[Shape, ...] = ((128, 128), (384, 384), (1024, 1024), (14336, 4096), (4096, 14336))
SMALL: tuple[Shape, ...] = ((384, 384), (512, 1024), (1024, 512))
BATCHES = (1, 2, 3, 4, 8, 16, 32, 64)
# Kernels and the weights that tell their pieces apart.
KERNELS = {
    "psumbook": ("m1v4g128", "m2v8g128"),
    "psumbook_fast": ("m1v4g128", "m2v8g128"),
    "dequant": ("m1v4g128", "m2v8g128", "m1v8b12g128"),
    "dequant_fast": ("m1v4g128", "m2v8g128", "m1v8b12g128"),
    "lutgemm": ("q2g128", "q3g128"),
}
AROUND, ALONE = "m1v4g128+rotated", "m1v4g128"  # what is around a kernel is what one takes more than the other
DTYPE = np.dtype(np.float32)
_MOST_COPIES = 32  # of small weights, which a model has in its last-level cache
_LEAST_CALLS = 12
_ROUNDS = 3


class Timed(NamedTuple):
    """A product that was timed, and its work."""

    name: str
    work: Work
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """0 once everything is measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu.costs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"put them into {costs.FILE.name}")
    parser.add_argument("--quick", action="store_true", help="small shapes and few calls, to see that all of it runs")
    chosen = parser.parse_args(arguments)
    with conditions.threads(1):
        timed = list(measure(SMALL if chosen.quick else SHAPES, 0.002 if chosen.quick else 0.15))
    solved = solve(timed)
    console = open_console()
    console.print(f"{device.name()}, {isa.chosen().name}: nanoseconds of one thread")
    for way, pieces in solved.items():
        console.print(_table(way, timed, pieces))
    if chosen.write:
        write(isa.chosen().name, solved)
        console.print(f"written to {costs.FILE}")
    return 0


def measure(shapes: Sequence[Shape], budget: float) -> Iterator[Timed]:
    """Every kernel with every shape, weights and batch that it takes here."""
    known = {kernel.name: kernel for kernel in registered("cpu")}
    asked = [(known[name], shape, config) for name in KERNELS for shape in shapes for config in KERNELS[name]]
    yield from _quickest(asked, BATCHES, budget)
    psumbook, shape = known["psumbook"], shapes[-1]
    around = kernel_for(psumbook, spec_of(shape, AROUND))
    for n in (4, 16):
        inner, outer = _quickest([(psumbook, shape, config) for config in (ALONE, AROUND)], [n], budget)
        beside = around.around(Product.of(spec_of(shape, AROUND), n, DTYPE))
        yield Timed(f"around {inner.name}", beside, max(outer.seconds - inner.seconds, 1e-9))


def _quickest(asked: Sequence[tuple[Kernel, Shape, str]], batches: Sequence[int], budget: float) -> list[Timed]:
    """Of each product the least time of several rounds: for seconds on end all may be slower, and that must not be one
    product's alone."""
    rounds = [[timed for each in asked for timed in _products(*each, batches, budget)] for _ in range(_ROUNDS)]
    return [min(same, key=lambda timed: timed.seconds) for same in zip(*rounds, strict=True)]


def _products(kernel: Kernel, shape: Shape, config: str, batches: Iterable[int], budget: float) -> Iterator[Timed]:
    spec = spec_of(shape, config)
    kernel = kernel_for(kernel, spec)
    products = [Product.of(spec, n, DTYPE) for n in batches]
    usable = [product for product in products if not refusal(kernel, product, CPU)]
    wanted = 10 * device.last_level_cache() / (spec.bits_per_weight * shape[0] * shape[1])
    weights = [
        random_weight(shape, config, seed) for seed in range(int(min(wanted, _MOST_COPIES)) + 1 if usable else 0)
    ]
    for product in usable:
        x, out = accuracy.inputs(shape[1], product.n, DTYPE), np.empty((product.n, shape[0]), DTYPE)
        plans = [Plan(weight, product, kernel) for weight in weights]
        for plan in plans:
            plan(x, out=out)
        turns, times = cycle(plans), []
        end = time.perf_counter() + budget
        while len(times) < _LEAST_CALLS or time.perf_counter() < end:
            begin = time.perf_counter()
            next(turns)(x, out=out)
            times.append(time.perf_counter() - begin)
        # What others do meanwhile only adds to a time.
        name = f"{kernel.name} {by(shape)} {config} N = {product.n}"
        [work] = works(kernel, product)  # these batches are each multiplied in one way
        yield Timed(name, work, float(np.quantile(times, 0.25)))


def works(kernel: Kernel, product: Product) -> tuple[Work, ...]:
    """The kernel's own, of the core where there is one."""
    if isinstance(kernel, CpuTransformed):
        return works(kernel.inner, kernel.core_product(product))
    assert isinstance(kernel, CpuKernel)
    return kernel.work(product)


def solve(timed: Iterable[Timed]) -> dict[str, dict[str, float]]:
    """Nanoseconds of each way's pieces, none negative, with the least squares of relative errors of its products."""
    ways: dict[str, list[Timed]] = {}
    for each in timed:
        ways.setdefault(each.work.way, []).append(each)
    return {way: _solve(products) for way, products in ways.items()}


def _solve(products: Sequence[Timed]) -> dict[str, float]:
    pieces = sorted({piece for each in products for piece in each.work.counts})
    found = dict.fromkeys(pieces, 0.0)
    while pieces:
        counts = [[each.work.counts.get(piece, 0) / each.seconds for piece in pieces] for each in products]
        matrix: npt.NDArray[np.float64] = np.array(counts, np.float64)
        sizes = np.linalg.norm(matrix, axis=0)
        values = np.linalg.lstsq(matrix / sizes, np.ones(len(products)), rcond=None)[0] / sizes
        if (values >= 0).all():
            return found | {piece: float(f"{1e9 * value:.3g}") for piece, value in zip(pieces, values, strict=True)}
        # One at a time: without it others may be positive.
        pieces.pop(int(np.argmin(values * sizes)))
    return found


def write(instructions: str, solved: dict[str, dict[str, float]]) -> None:
    """Into the file, in the place of what it has of these instructions."""
    all_costs = {**costs.read(), instructions: {"processor": device.name(), "nanoseconds": solved}}
    ordered = {each.name: all_costs[each.name] for each in isa.ALL if each.name in all_costs}
    costs.FILE.write_text(json.dumps(ordered, indent=2) + "\n")
    costs.table.cache_clear()


def _table(way: str, timed: Sequence[Timed], pieces: dict[str, float]) -> Table:
    """The products of one way beside the sum of their pieces."""
    told = ", ".join(f"{piece} {value:g}" for piece, value in pieces.items())
    table = new_table(f"{way}: {told}", "product", ">measured", ">sum", ">off")
    for each in timed:
        if each.work.way == way:
            total = 1e-9 * sum(count * pieces[piece] for piece, count in each.work.counts.items())
            off = f"{100 * (total / each.seconds - 1):+.0f} %"
            table.add_row(each.name, format_time(each.seconds), format_time(total), off)
    return table


if __name__ == "__main__":
    sys.exit(main())
