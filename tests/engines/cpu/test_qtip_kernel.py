"""QTIP's product on the CPU: the original's layers, every number of rows of x, and codes in the kernel's order."""

import numpy as np
import pytest
from support.cpu import check_products, check_threads, product

from codegemm import QtipWeight
from codegemm.baselines.cpu import qtip
from codegemm.devices import CPU
from codegemm.engines.cpu import isa
from codegemm.formats import trellis


@pytest.mark.parametrize("instructions", [each.name for each in isa.available()])
@pytest.mark.parametrize("case", ["k2", "k3", "k4", "k2had"])
def test_layers_of_the_original(case, instructions, golden, monkeypatch, fresh_engine):
    monkeypatch.setenv(isa.VARIABLE, instructions)
    data = golden("qtip")
    weight = QtipWeight(*(data[f"{case}_{name}"] for name in ("trellis", "tlut", "SU", "SV")))
    x, y = data[f"{case}_x"], data[f"{case}_y"]
    assert np.abs(product(weight, x, "qtip") - y).max() <= 1e-6 * np.abs(y).max()


@pytest.mark.parametrize("config", ["qtip", "qtip3", "qtip4"])
def test_every_number_of_rows_of_x(config, make_weight, rng):
    """Rows share the decoded weights, some of them registers; the last columns are fewer than are decoded at a time."""
    weight = make_weight(96, 32 * 9 * 2, config)
    for n in (*range(1, 15), 67):
        x = rng.standard_normal((n, 576)).astype(np.float32)
        check_products(weight, x, ["qtip"])
        check_threads(weight, x, ["qtip"], (1, 2, 5))


@pytest.mark.parametrize("config", ["qtip", "qtip3", "qtip4"])
def test_codes_in_the_kernels_order(config, make_weight):
    """A block's words lie place by place, of 8 rows and 2 x 2 tiles; the stored trellis comes back from them."""
    weight, kernel = make_weight(64, 96, config), qtip.Qtip()
    prepared = kernel.prepare(weight, CPU)
    codes, tiles = prepared.arguments.arrays["codes"], trellis.unpack(weight.trellis, weight.shape)
    place, row = 2 * weight.bits - 1, 5
    assert codes[1, 2, place, row, 0, 1] == tiles[2 * 6 + 5, row * 2 * weight.bits + place]
    assert np.array_equal(kernel.restore(prepared, "trellis"), weight.trellis)
