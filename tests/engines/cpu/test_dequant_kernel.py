"""The dequantising kernel on the processor: few rows of x, panels of them, batches of panels."""

import numpy as np
import pytest
from support.cpu import check_products, check_threads, product

import codegemm
from codegemm.engines.cpu import dequant, isa
from codegemm.formats import random_weight

PANEL, BATCH = dequant.PANEL_ROWS, dequant.BATCH_ROWS
ROWS = (1, dequant.FEW_ROWS, dequant.FEW_ROWS + 1, PANEL, PANEL + 1, 3 * PANEL - 1, 9 * PANEL)


def normal(rng, n, columns, dtype=np.float32):
    return rng.standard_normal((n, columns)).astype(dtype)


@pytest.mark.parametrize("name", [each.name for each in isa.available()])
@pytest.mark.parametrize(
    ("rows", "columns", "config"),
    [((150, 23), 624, "m1v4g24"), ((64,), 390, "m3v13b6g26"), ((3,), 7, "m8v1b1g1"), ((130,), 520, "m1v8b12g-1")],
)
def test_any_number_of_rows(name, rows, columns, config, monkeypatch, fresh_engine, rng):
    """Of parts, tiles that end within a step, rows that end within a strip, codes of 16 bits."""
    monkeypatch.setenv(isa.VARIABLE, name)
    weight = codegemm.concat([random_weight((each, columns), config, int(rng.integers(1 << 31))) for each in rows])
    for n in ROWS:
        check_products(weight, normal(rng, n, columns, rng.choice([np.float16, np.float32])), ["dequant"])


def test_batches_of_panels(make_weight, rng):
    weight = make_weight(65, 96, "m1v4g32")
    for n in (BATCH, BATCH + 1, 2 * BATCH + PANEL + 3):
        check_products(weight, normal(rng, n, 96), ["dequant"])


def test_threads_share_few_rows_of_w(make_weight, rng):
    for rows in (70, 700):
        weight = make_weight(rows, 320, "m2v8g64")
        check_threads(weight, normal(rng, BATCH, 320), ["dequant"], (1, 3))


def test_what_is_not_finite_stays_in_its_row(make_weight, rng):
    weight = make_weight(70, 264, "m1v4g-1")
    x = normal(rng, 20, 264)
    expected = product(weight, x, "dequant")
    for value, row in ((np.nan, 3), (np.inf, 17)):
        spoilt = x.copy()
        spoilt[row, 263] = value
        y = product(weight, spoilt, "dequant")
        assert not np.isfinite(y[row]).any()
        assert np.delete(y, row, 0).tobytes() == np.delete(expected, row, 0).tobytes()
