"""What work takes by instruction set, and what `auto` makes of it."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.cpu import costs as bench
from codegemm import choice
from codegemm.devices import CPU
from codegemm.engines.cpu import costs, isa, library
from codegemm.engines.cpu.costs import Work
from codegemm.engines.cpu.transformed import CpuTransformed
from codegemm.formats.format import spec_of
from codegemm.kernel import Product
from codegemm.registry import kernel_for, refusal, registered

# Rows from a plane of signs to codes of sixteen bits; the first and the last of each way to multiply.
SPECS = [spec_of(shape, name) for shape in ((384, 384), (4096, 4096))
         for name in ("m1v4g128", "m2v8g128", "m1v8b12g128", "q2g128", "m1v4g128+rotated+offsets")]  # fmt: skip
BATCHES = (1, 3, 8, 9, 16, 17, 127, 128, 512)


@pytest.fixture(params=isa.ALL, ids=lambda each: each.name)
def instructions(request, monkeypatch):
    monkeypatch.setattr(isa, "chosen", lambda: request.param)
    choice.choose_anew()
    yield request.param
    monkeypatch.undo()
    choice.choose_anew()


def test_all_pieces_of_work_have_a_cost(instructions):
    """With all instructions, of the kernels that `auto` chooses from; what was written is what kernels count."""
    counted = set()
    for spec in SPECS:
        for kernel in registered("cpu", spec):
            for n in BATCHES:
                product = Product.of(spec, n, np.float32)
                if refusal(kernel, product, CPU) or not (kernel.is_automatic(product) or kernel.precision == "fast"):
                    continue
                works = bench.works(kernel, product)
                assert works
                for work in (*works, *([kernel.around(product)] if isinstance(kernel, CpuTransformed) else [])):
                    assert costs.seconds(work) is not None, (kernel.name, work.way)
                    counted |= {(work.way, piece) for piece in work.counts}
                assert kernel.estimate(product, CPU) > 0
    written = costs.table()[instructions.name]
    assert counted <= {(way, piece) for way, pieces in written.items() for piece in pieces}
    assert all(cost >= 0 for pieces in written.values() for cost in pieces.values())


def test_estimates_are_sums_of_pieces(instructions, monkeypatch):
    pieces = {"product": 7.0, "lookup": 3.0, "entry": 0.5, "component": 0.25}
    monkeypatch.setattr(costs, "table", lambda: {instructions.name: {"psumbook": pieces}})
    spec = spec_of((256, 512), "m2v8g128")
    [kernel] = [kernel for kernel in registered("cpu") if kernel.name == "psumbook"]
    lookups, entries = 256 * 64 * 2, 64 * 2 * 256
    nanoseconds = 7 + 3 * lookups + 0.5 * entries + 0.25 * 8 * entries
    product = Product.of(spec, 1, np.float32)
    assert kernel_for(kernel, spec).estimate(product, CPU) == pytest.approx(1e-9 * nanoseconds)
    assert costs.seconds(Work("dequant", {"product": 1})) is None


@pytest.mark.parametrize("name", ["psumbook", "psumbook_fast"])
def test_rows_beyond_sixteen_are_counted_as_if_they_were_alone(name, instructions):
    spec = spec_of((256, 512), "m2v8g128")
    [kernel] = [kernel for kernel in registered("cpu") if kernel.name == name]

    def counted(rows):
        total = Counter()
        for work in kernel.work(Product.of(spec, rows, np.float32)):
            total.update({(work.way, piece): count for piece, count in work.counts.items() if piece != "product"})
        return total

    for n in range(1, 16):
        assert counted(32 + n) == counted(16) + counted(16) + counted(n)


def test_a_choice_is_the_same_for_any_number_of_threads(instructions):
    """It decides about roundings, which threads don't change."""
    before = library.get_num_threads()
    chosen = []
    try:
        for threads in (1, 2, 7):
            library.set_num_threads(threads)
            choice.choose_anew()
            chosen.append([choice.select(Product.of(spec, n, np.float32), CPU).name for spec in SPECS for n in BATCHES])
    finally:
        library.set_num_threads(before)
    assert chosen[0] == chosen[1] == chosen[2]
    assert len(set(chosen[0])) > 1
