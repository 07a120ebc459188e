"""Integers as other tools have them: bounds of errors, and what feeding errors back gains."""

import numpy as np
import pytest

from benchmarks.models.integers import Integers

CASES = [(2, 64), (3, -1), (4, 48), (8, 1000), (2, 7)]


@pytest.fixture(params=CASES, ids=lambda case: "int{}g{}".format(*case))
def integers(request):
    return Integers(*request.param)


def matrix_and_inputs(rng, rows=24, columns=192, spread=0.4):
    """W, and H of inputs that depend on each other."""
    mix = rng.standard_normal((columns, columns)) * spread + np.eye(columns)
    inputs = rng.standard_normal((4 * columns, columns)) @ mix
    return rng.standard_normal((rows, columns), np.float32), inputs.T @ inputs


def groups(integers, columns):
    size = columns if integers.group == -1 else integers.group
    return [slice(at, min(at + size, columns)) for at in range(0, columns, size)]


def loss(W, rounded, H):
    """In the norm of H: of the outputs."""
    error = W.astype(np.float64) - rounded
    return float(np.einsum("rk,kj,rj->", error, H, error))


def test_errors_are_half_a_step_at_most(integers, rng):
    W = rng.standard_normal((16, 200), np.float32) * rng.uniform(0.01, 10, (16, 1)).astype(np.float32)
    rounded = integers.nearest(W)
    for columns in groups(integers, 200):
        part = W[:, columns]
        low, high = part.min(1, keepdims=True), part.max(1, keepdims=True)
        # float16 moves the least value and, at the far end of the grid, all the steps to there.
        halves = 2.0**-11 * (np.abs(low) + 2 * (high - low))
        step = (high - low) / (2**integers.bits - 1)
        assert (np.abs(rounded.matrix[:, columns] - part) <= step / 2 + halves + 1e-6).all()


def test_each_is_the_nearest_of_the_numbers_there_are(integers, rng):
    W = rng.standard_normal((8, 192), np.float32)
    rounded = integers.nearest(W).matrix
    for columns in groups(integers, 192):
        for row, its in zip(W[:, columns], rounded[:, columns]):
            used = np.unique(its)
            assert len(used) <= 2**integers.bits
            assert np.allclose(np.abs(row - its), np.abs(row[:, None] - used).min(1), atol=1e-6)


def test_steps_and_least_values_are_halves(rng):
    W = rng.standard_normal((8, 64), np.float32)
    rounded = Integers(2, 64).nearest(W).matrix.astype(np.float64)
    for row in rounded:
        least, *others = np.unique(row)
        assert least == np.float16(least)
        assert all(np.isclose((each - least) / number, np.float64(np.float16((each - least) / number)), rtol=1e-6)
                   for number, each in enumerate(others, 1))  # fmt: skip


def test_inputs_that_are_apart_feed_nothing_back(integers, rng):
    """H = a diagonal: each weight is the nearest of its group's grid."""
    W = rng.standard_normal((8, 300), np.float32)
    rounded = integers.fed_back(W, np.diag(rng.uniform(1, 5, 300))).matrix
    for columns in groups(integers, 300):
        grid = integers._best(W[:, columns])
        assert np.array_equal(rounded[:, columns], grid.nearest(W[:, columns]).astype(np.float32))


def test_the_best_grid_leaves_out_few_that_are_far_away(rng):
    """By itself the range is as good as any; a row with one large weight loses less if that weight is moved."""
    even, far = np.linspace(-1, 1, 64)[None], rng.standard_normal((1, 64)) / 50
    far[0, 7] = 0.5
    W = np.vstack([even, far])
    for bits in (2, 3, 4):
        best, whole = Integers(bits, -1)._best(W), Integers(bits, -1)._grid(W)
        assert (best.loss(W) <= whole.loss(W)).all()
        assert best.step[1] < whole.step[1]
    assert Integers(6, -1)._best(even).step == Integers(6, -1)._grid(even).step


def test_feeding_back_lessens_the_outputs_error(integers, rng):
    W, H = matrix_and_inputs(rng)
    fed_back, nearest = integers.fed_back(W, H), integers.nearest(W)
    assert fed_back.bits_per_weight == nearest.bits_per_weight
    assert loss(W, fed_back.matrix, H) < 0.9 * loss(W, nearest.matrix, H)


def test_feedback_is_what_is_best_for_the_columns_behind(rng):
    """After each column is rounded, those behind become what loses least given it, by normal equations."""
    W, H = matrix_and_inputs(rng, 3, 6)
    damped = H + 0.01 * np.diagonal(H).mean() * np.eye(6)
    integers = Integers(3, 4)
    grids = [integers._best(W[:, :4])] * 4 + [integers._best(W[:, 4:])] * 2
    wanted, behind = W.astype(np.float64), list(range(6))
    for k in sorted(range(6), key=lambda k: -H[k, k]):
        behind.remove(k)
        rounded = grids[k].nearest(wanted[:, k : k + 1])[:, 0]
        gain = np.linalg.solve(damped[np.ix_(behind, behind)], damped[behind, k])
        wanted[:, behind] += np.outer(wanted[:, k] - rounded, gain)
        wanted[:, k] = rounded
    assert np.allclose(integers.fed_back(W, H).matrix, wanted, atol=1e-6)


def test_bits_count_all_that_is_stored():
    assert Integers(2, 64).bits_per_weight(576) == 2.5
    assert Integers(4, -1).bits_per_weight(1536) == 4 + 32 / 1536
    assert Integers(3, 128).bits_per_weight(576) == 3 + 32 * 5 / 576  # the last group is short
    assert Integers(3, 128).nearest(np.ones((2, 576))).bits_per_weight == 3 + 32 * 5 / 576


def test_equal_weights_and_dead_inputs_stay(rng):
    W = np.full((4, 64), 0.3, np.float32)
    assert np.allclose(Integers(2, 32).nearest(W).matrix, np.float16(0.3))
    H = matrix_and_inputs(rng, 4, 64)[1]
    H[5] = H[:, 5] = 0
    assert np.isfinite(Integers(2, 32).fed_back(rng.standard_normal((4, 64)), H).matrix).all()


def test_names():
    for name in ("int4g128", "int2g-1"):
        assert str(Integers.parse(name)) == name
    for name in ("int4", "q4g128", "int4g0", "int4g-2", "int12g8"):
        with pytest.raises(ValueError, match=f"'{name}': must be like int4g128"):
            Integers.parse(name)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Integers(9, 64), "bits=9: must be from 2 to 8"),
        (lambda: Integers(1, 64), "bits=1: must be"),
        (lambda: Integers(4, 0), "group=0: must be at least 1, or -1"),
        (lambda: Integers(4, 8).nearest(np.ones(8)), r"W: shape \(8,\)"),
        (lambda: Integers(4, 8).nearest(np.ones((0, 8))), r"W: shape \(0, 8\)"),
        (lambda: Integers(4, 8).nearest(np.full((1, 8), np.nan)), "W: nan in it"),
        (lambda: Integers(4, 8).nearest(np.full((1, 8), 6e4)), "W: 60000 in it; float16"),
        (lambda: Integers(4, 8).fed_back(np.ones((1, 8)), np.eye(9)), r"H: shape \(9, 9\), must be \(8, 8\)"),
        (lambda: Integers(4, 8).fed_back(np.ones((1, 8)), np.zeros((8, 8))), "H: mean 0 of its diagonal"),
        (lambda: Integers(4, 8).fed_back(np.ones((1, 8)), np.full((8, 8), np.inf)), "H: mean inf"),
        (lambda: Integers(4, 2).fed_back(np.ones((1, 2)), [[1, 9], [9, 1]]), "H: must be X"),
    ],
)
def test_what_can_not_be_is_refused(made, said):
    with pytest.raises(ValueError, match=said):
        made()
