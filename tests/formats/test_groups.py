"""Groups of columns as a checkpoint has them, and as they are stored."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegemm.checkpoints.groups import find_groups


@st.composite
def cut_rows(draw):
    """The columns of a row, the size of a group, and each column's group: the last may be short."""
    columns = draw(st.integers(1, 2000))
    size = draw(st.integers(1, columns))
    return columns, size, np.arange(columns) // size


def check(found, columns, size, index):
    """Each column has the numbers of its group, once the columns are in order; stored groups are as large as may be."""
    order = np.arange(columns) if found.order is None else found.order
    assert np.array_equal(np.sort(order), np.arange(columns))
    values = np.random.default_rng(0).standard_normal((2, index.max() + 1))
    assert np.array_equal(found.spread(values).repeat(found.size, 1), values[:, index[order]])
    assert found.size == math.gcd(columns, size)


@given(cut_rows())
def test_neighbours(row):
    columns, size, index = row
    check(find_groups(columns, index[-1] + 1, size), columns, size, index)


@given(cut_rows(), st.booleans(), st.sampled_from([np.int32, np.int64]), st.integers(0, 2**32))
def test_columns_in_any_order(row, stated, dtype, seed):
    columns, size, index = row
    index = np.random.default_rng(seed).permutation(index)
    found = find_groups(columns, index.max() + 1, size if stated else None, index.astype(dtype))
    check(found, columns, size, index)
    assert (found.order is None) == (np.diff(index) >= 0).all()
