"""The margin of rounding errors against quantiles of errors that are drawn."""

import numpy as np
import pytest

from codegemm.engines.cpu.rounding import error_margin

DEVIATIONS = 3.2905  # beyond which a number is one time in 1,000
DRAWS = 100_000


def check(shares, rng, sizes=None):
    """Of the mean square of normally distributed errors of these sizes, with correlations `shares` [rows, rows]."""
    sizes = np.ones(len(shares)) if sizes is None else sizes
    eigenvalues = np.maximum(np.linalg.eigvalsh(shares * np.sqrt(np.outer(sizes, sizes))), 0)
    squares = np.square(rng.standard_normal((DRAWS, len(shares)), np.float32))
    drawn = np.quantile(squares @ (eigenvalues / eigenvalues.sum()).astype(np.float32), 0.999)
    assert 0.93 < error_margin(sizes, shares, DEVIATIONS) / drawn < 1.5


def alike(rows, share):
    """Each two rows have this share of their errors in common."""
    return np.where(np.eye(rows, dtype=bool), 1.0, share)


@pytest.mark.parametrize("share", [0, 0.03, 0.25, 0.5, 0.9, 1])
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 60])
def test_rows_that_share_a_part(rows, share, rng):
    check(alike(rows, share), rng)


@pytest.mark.parametrize("sides", [1, 2, 4, 20])
def test_rows_with_and_against_others(sides, rng):
    errors = rng.standard_normal((40, sides)) * rng.uniform(0.1, 1, sides)
    errors /= np.linalg.norm(errors, axis=1, keepdims=True)
    check(errors @ errors.T, rng)


@pytest.mark.parametrize("spread", [1, 4, 12])
@pytest.mark.parametrize("rows", [2, 8, 60, 300])
def test_rows_of_other_sizes(rows, spread, rng):
    """The largest make up most of the error: it is as if there were fewer."""
    check(np.eye(rows), rng, 2.0 ** rng.uniform(0, spread, rows))


def test_a_weight_of_zeros():
    assert error_margin(np.zeros(8), np.eye(8)) == error_margin(np.ones(8), np.eye(8))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_some_rows_stand_for_all(share):
    assert error_margin(np.ones(1000), alike(50, share)) == pytest.approx(
        error_margin(np.ones(1000), alike(1000, share)), rel=1e-6
    )


def test_one_row_and_very_many():
    assert error_margin(np.ones(1), np.ones((1, 1))) == pytest.approx(5.33**2)
    assert 1 < error_margin(np.ones(10**6), np.eye(2)) < 1.01
