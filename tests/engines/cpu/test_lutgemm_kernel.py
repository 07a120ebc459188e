"""LUT-GEMM's product on the CPU: every v, groups that are no whole codes, planes, rows of x, slices and what stands
around, and when `auto` takes it."""

import numpy as np
import pytest
from support.cpu import check_products, check_threads

from codegemm import Product, arrays, choice
from codegemm.baselines.cpu.lutgemm import BLOCK_ROWS, SLICE_ROWS, TILE_CODES, Lutgemm
from codegemm.devices import CPU
from codegemm.engines.cpu import costs, isa
from codegemm.formats.format import spec_of
from codegemm.registry import kernel_for

PATHS = [each.name for each in isa.available()]


@pytest.fixture(params=PATHS)
def instructions(request, monkeypatch, fresh_engine):
    """Each of the processor's in turn."""
    monkeypatch.setenv(isa.VARIABLE, request.param)


@pytest.mark.usefixtures("instructions")
def test_every_v(make_weight, rng):
    """With any multiple of it as a group, any number of planes and parts, and odd shapes."""
    for v in range(1, 9):
        planes, parts, n = rng.integers(1, (9, 4, 20))
        g = v * int(rng.integers(1, 40))
        config = f"q{planes}v{v}g{g}"
        weight = make_weight(int(rng.integers(3, 700)), g * int(rng.integers(1, 9)), config, int(parts))
        dtype = arrays.float_dtype(rng.choice(["float16", "bfloat16", "float32"]))
        check_products(weight, rng.standard_normal((n, weight.shape[1])).astype(dtype), ["lutgemm"])


@pytest.mark.usefixtures("instructions")
def test_every_number_of_rows_of_x(make_weight, rng):
    """Some rows share tables, and sixteen a pass; the last slice, block, tile and code are no whole ones."""
    weight = make_weight(SLICE_ROWS + BLOCK_ROWS + 5, 3 * 260, "q2v4g260")
    for n in (*range(1, 20), 37):
        x = rng.standard_normal((n, weight.shape[1])).astype(np.float32)
        check_products(weight, x, ["lutgemm"])
    check_threads(weight, x, ["lutgemm"], (1, 2, 5))


@pytest.mark.parametrize("config", ["q3v4g8+rotated16+added", "q2g32+ordered", "q1g-1+offsets", "q8g16+rotated"])
def test_what_stands_around_planes(config, make_weight, rng):
    for parts, n in ((1, 1), (3, 7), (1, 16)):
        weight = make_weight(77, 480, config, parts)
        x = rng.standard_normal((n, 480)).astype(np.float16)
        check_products(weight, x, ["lutgemm"])
        check_threads(weight, x, ["lutgemm"], (1, 3))


@pytest.mark.parametrize(("config", "group_codes", "tiles"), [("q3g40", 5, 2), ("q3v2g6", 1, 3)])
def test_codes_in_the_kernels_order(config, group_codes, tiles, make_weight):
    """Codes of the same columns lie side by side for the rows of a block; the weight's own come back from them."""
    weight, kernel = make_weight(SLICE_ROWS + 3 * BLOCK_ROWS - 9, 240, config), Lutgemm()
    core, groups = weight.core, weight.spec.groups
    prepared = kernel.prepare(weight, CPU)
    second = prepared.arguments.arrays["codes"][SLICE_ROWS * 3 * tiles * TILE_CODES :]
    second = second.reshape(tiles, 3, 3, TILE_CODES, BLOCK_ROWS)
    block, row, plane, group = 1, 11, 2, groups - 2
    codes = core.codes[SLICE_ROWS + block * BLOCK_ROWS + row].reshape(3, groups, -1)[plane, group]
    signs = codes[:, None] >> np.arange(core.config.v) & 1
    tile, code = divmod(group * group_codes, TILE_CODES)
    assert second[tile, block, plane, code, row] == np.packbits(signs.ravel()[:8], bitorder="little")[0]
    assert np.array_equal(kernel.restore(prepared, "codes"), core.codes)


def test_auto_takes_it_where_it_was_compared(monkeypatch, rng):
    """With other instructions nobody knows whether it is the fastest."""
    wanted = Product.of(spec_of((4096, 512), "q2g128"), 1, np.float32)
    kernel = kernel_for(Lutgemm(), wanted.spec)
    for each in isa.ALL:
        monkeypatch.setattr(isa, "chosen", lambda each=each: each)
        measured = "lutgemm" in costs.table()[each.name]
        assert kernel.is_automatic(wanted) == measured
        assert kernel.estimate(wanted, CPU) > 0
        choice.choose_anew()
        assert measured or choice.select(wanted, CPU).name != "lutgemm"
    monkeypatch.undo()
    choice.choose_anew()


def test_costs_are_those_of_codes_as_they_are_arranged():
    """Of 12 codes a row in 16 places for 77 rows in 128, and of as many scales."""
    cost = Lutgemm().cost(Product.of(spec_of((77, 90), "q3v5g15"), 2, np.float32), CPU)
    assert cost.bytes_read == 128 * 3 * (16 + 2 * 6) + 2 * 4 * 90
    assert cost.bytes_written == 2 * 4 * 77
