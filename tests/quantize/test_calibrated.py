"""Weights quantised for their inputs, and rotated: what they gain, and inputs of unusual kinds."""

import itertools
import warnings
from unittest.mock import Mock

import numpy as np
import pytest
from support.backends import BACKENDS, needs_torch

import codegemm
from codegemm import calibration
from codegemm.formats.codebook import decode_rows
from codegemm.formats.rotation import Rotation, default_block
from codegemm.quantize import additive, arithmetic, calibrated, output_fit
from codegemm.quantize.hessian import Hessian
from codegemm.quantize.search import encode
from codegemm.quantize.sweep import Rows, choose, improve

K = 128


@pytest.fixture
def matrix(rng):
    return rng.standard_normal((96, K), np.float32)


@pytest.fixture
def inputs(rng):
    """Rows of x in which columns go together and some are large, as a transformer's."""
    mixed = rng.standard_normal((4000, K)) @ (np.eye(K) + rng.standard_normal((K, K)) / np.sqrt(K))
    return (mixed * np.exp(rng.standard_normal(K))).astype(np.float32)


def summed(x):
    made = codegemm.Calibration(x.shape[-1])
    made.update(x)
    return made


def output_error(matrix, weight, x):
    return np.linalg.norm(x @ (matrix - weight.dequantize()).T) ** 2 / np.linalg.norm(x @ matrix.T) ** 2


def without_and_with(calibration, matrix, config, **named):
    """Two weights, the second quantised for the inputs of a calibration."""
    return [codegemm.quantize(matrix, config, calibration=each, **named) for each in (None, calibration)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", ["m1v4b6g32", "m2v8b5", "m3v4b3g64", "m1v1b2g16", "e8p", "qtip", "qtip4"])
def test_calibration_lessens_the_error_of_the_output(config, backend, matrix, inputs):
    seen, unseen = inputs[:2000], inputs[2000:]
    free, made = without_and_with(summed(seen), matrix, config, backend=backend)
    assert made.spec == free.spec
    assert output_error(matrix, made, unseen) < 0.75 * output_error(matrix, free, unseen)


@pytest.mark.parametrize("config", ["m2v8b6", "e8p", "qtip"])
def test_inputs_that_say_nothing_leave_it_as_good(config, matrix):
    free, made = without_and_with(codegemm.Calibration.of(np.eye(K), 1), matrix, config)
    errors = [np.linalg.norm(matrix - weight.dequantize()) for weight in (free, made)]
    assert errors[1] <= 1.001 * errors[0]


@pytest.mark.parametrize("config", ["m2v8b4g64+rotated", "e8p", "qtip"])
def test_the_same_seed_gives_the_same_weight(config, matrix, inputs):
    made = [codegemm.quantize(matrix, config, calibration=summed(inputs), seed=seed) for seed in (3, 3, 4)]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("config", ["m1v4b6g32", "m2v8b5"])
def test_dead_inputs_keep_their_weights(config, matrix, inputs):
    """Other inputs may come some day: their weights are no worse than without calibration by much."""
    dead = inputs.copy()
    dead[:, 32:64] = 0
    free, made = without_and_with(summed(dead), matrix, config)
    errors = [np.linalg.norm((matrix - weight.dequantize())[:, 32:64]) for weight in (free, made)]
    assert errors[1] < 1.3 * errors[0]
    assert output_error(matrix, made, dead) < 0.75 * output_error(matrix, free, dead)


@pytest.mark.parametrize("config", ["m1v4b6", "e8p", "qtip"])
def test_fewer_rows_than_inputs(config, matrix, inputs):
    few = inputs[:5]
    free, made = without_and_with(summed(few), matrix, config)
    assert output_error(matrix, made, few) < 0.5 * output_error(matrix, free, few)
    assert output_error(matrix, made, inputs) < 2 * output_error(matrix, free, inputs)


@pytest.mark.parametrize("config", ["m1v4b6g32", "m2v8b4", "e8p", "qtip"])
def test_unusual_matrices(config, inputs, rng):
    cal = summed(inputs)
    assert not codegemm.quantize(np.zeros((32, K)), config, calibration=cal).dequantize().any()
    matrix = rng.standard_normal((32, K), np.float32)
    matrix[3] = 0
    matrix[5] = 2.5
    for size in (1, 1e-6, 1e4):
        made = codegemm.quantize(size * matrix, config, calibration=cal)
        assert not made.dequantize()[3].any()
        assert output_error(size * matrix, made, inputs) < 0.4


def test_no_time_leaves_the_codes_without_calibration(matrix, inputs):
    free, made = without_and_with(summed(inputs), matrix, "m2v8b4", time_limit=0)
    assert made == free


def test_an_end_between_blocks_keeps_what_is_better(matrix, inputs, monkeypatch):
    stop = Mock(is_due=Mock(side_effect=itertools.chain([False], itertools.repeat(True))))
    monkeypatch.setattr(calibrated, "_FEW", 16)
    free = codegemm.quantize(matrix, "m2v8b4")
    H = summed(inputs).H
    made = calibrated.refine(matrix, free, H, arithmetic.find("numpy", 0), stop, Mock())
    changed = (made.dequantize() != free.dequantize()).any(1)
    assert changed.any()
    assert not changed.all()
    assert output_error(matrix, made, inputs) < output_error(matrix, free, inputs)


@pytest.fixture
def coded(matrix, inputs):
    free = codegemm.quantize(matrix, "m2v8b4g32")
    books, scales = free.codebooks.astype(np.float32), free.scales.astype(np.float32)
    return Hessian.of(summed(inputs).H, 8), Rows.of(matrix, free.codes, scales, books, arithmetic.Arithmetic()), books


def weighed(errors, hessian):
    errors = errors.astype(np.float64)
    return ((errors @ hessian.all.matrix) * errors).sum(1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_row_gets_worse_by_choosing_codes_again(backend, coded):
    hessian, rows, books = coded
    ops, before = arithmetic.find(backend, 0), weighed(rows.errors, hessian)
    there = Rows.of(rows.weights, rows.codes, rows.scales, books, ops)
    improve(there, ops.put(books), hessian.all.on(ops), 4, ops)
    codes, errors = ops.get(there.codes), ops.get(there.errors)
    after = weighed(errors, hessian)
    assert (after <= before * (1 + 1e-4)).all()
    assert after.sum() < 0.9 * before.sum()
    assert np.allclose(errors, rows.weights - decode_rows(codes, books, rows.scales), atol=1e-5)


def test_feedback_is_the_nearest_point_where_inputs_are_independent(coded):
    _, rows, books = coded
    ops = arithmetic.find("numpy", 0)
    fresh = choose(rows, books, Hessian.of(np.eye(K), 8).before, 8, ops)
    vectors = (rows.weights.reshape(*rows.scales.shape, -1) / rows.scales[..., None]).reshape(-1, 8)
    assert (fresh.codes.reshape(-1, 2) == encode(vectors, books, 8, ops)).mean() > 0.999


def test_the_triangle_is_a_root(coded):
    hessian = coded[0]
    root = hessian.before.matrix.astype(np.float64)
    assert not np.tril(root, -1).any()
    assert np.allclose(root @ root.T, hessian.all.matrix, atol=1e-5 * np.abs(hessian.all.matrix).max())


def test_codebooks_come_near_least_squares(matrix, inputs):
    """Against the whole system of equations, solved."""
    weight = codegemm.quantize(matrix, "m1v2b2")
    H = summed(inputs).H / len(inputs)
    books, scales = weight.codebooks.astype(np.float32), weight.scales.astype(np.float32)
    design = np.zeros((matrix.shape[0], K, 4 * 2))
    for at in range(4 * 2):
        unit = np.zeros(8, np.float32)
        unit[at] = 1
        design[..., at] = decode_rows(weight.codes, unit.reshape(1, 4, 2), scales)
    normal = np.einsum("rka,kl,rlb->ab", design, H, design, optimize=True)
    right = np.einsum("rka,kl,rl->a", design, H, matrix, optimize=True)
    best = np.linalg.solve(normal, right)

    def error(books):
        return sum(np.einsum("k,kl,l->", row, H, row) for row in matrix - design @ books.ravel())

    found = output_fit.fit_codebooks(
        matrix, weight.codes, scales, books, H.astype(np.float32), arithmetic.find("numpy", 0)
    )
    assert error(found) < error(books)
    assert error(found) - error(best) < 0.05 * (error(books) - error(best))


def test_scales_are_fitted_together(coded):
    hessian, rows, books = coded
    H = hessian.all.matrix
    found = output_fit.fit_scales(rows.weights, rows.codes, rows.scales, books, H)
    after = weighed(rows.weights - decode_rows(rows.codes, books, found), hessian)
    assert (after <= weighed(rows.errors, hessian) * (1 + 1e-4)).all()
    assert (found != rows.scales).any()
    assert (found == found.astype(np.float16)).all()
    nudged = weighed(rows.weights - decode_rows(rows.codes, books, found * np.float32(1.01)), hessian)
    assert nudged.sum() > after.sum()


def test_a_calibration_adds_up_a_stream(rng):
    x = rng.standard_normal((5000, 24), np.float32) * np.exp(rng.standard_normal(24)).astype(np.float32)
    parts = codegemm.Calibration(24)
    for part in (x[:1], x[1:7].reshape(2, 3, 24), x[7:2999], x[2999:2999], x[2999:]):
        parts.update(part)
    exact = x.astype(np.float64).T @ x
    assert parts.rows == 5000
    assert np.abs(parts.H - exact).max() < 1e-6 * np.diagonal(exact).max()
    assert not parts.H.flags.writeable
    one = codegemm.Calibration(24)
    one.update(x[0].astype(np.float16))
    assert one.rows == 1


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_calibration_of_torch_tensors(dtype, rng):
    import torch

    x = torch.from_numpy(rng.standard_normal((50, 24), np.float32)).to(getattr(torch, dtype)).requires_grad_()
    made = summed(x)
    exact = x.detach().double().numpy()
    assert np.allclose(made.H, exact.T @ exact, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):  # as in the middle of a model
        assert np.array_equal(summed(x).H, made.H)


@needs_torch
def test_a_calibration_of_a_tensors_matrix():
    import torch

    matrix = torch.eye(4, dtype=torch.bfloat16).mul(3).requires_grad_()
    made = codegemm.Calibration.of(matrix, 3)
    with torch.no_grad():
        matrix.zero_()
    assert np.array_equal(made.H, 3 * np.eye(4))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones((3, 5), np.float32), ValueError, r"x: shape \(3, 5\), its last axis must be in_features=4"),
        (np.ones(()), ValueError, r"x: shape \(\)"),
        (np.ones((3, 4), np.int32), TypeError, "x: dtype int32"),
        (np.array([[1, 2, np.nan, 4]]), ValueError, "x: column 2 has a NaN"),
        (np.array([[np.inf, 2, 3, 4]]), ValueError, "x: column 0"),
        (np.array([[1, 2, 3, 1e30]]), ValueError, "x: column 3"),
    ],
)
def test_inputs_that_cannot_be_added(x, error, message):
    made = summed(np.ones((2, 4)))
    with pytest.raises(error, match=message):
        made.update(x)
    assert made.rows == 2
    assert (made.H == 2).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"calibration": np.eye(K)}, TypeError, "calibration: ndarray, must be a codegemm.Calibration"),
        ({"calibration": codegemm.Calibration(7)}, ValueError, "calibration: in_features=7, W has 128"),
        ({"calibration": codegemm.Calibration(K)}, ValueError, "all inputs of its 0 rows are zero"),
        ({"config": "e8p", "rotate": True}, ValueError, "config 'e8p\\+rotated': e8p rotates"),
    ],
)
def test_calibrations_that_do_not_fit(arguments, error, message, matrix):
    with pytest.raises(error, match=message):
        codegemm.quantize(matrix, **{"config": "m1v4b4", **arguments})


@pytest.mark.parametrize(
    ("H", "message"),
    [
        (np.ones((2, 3)), r"H: shape \(2, 3\)"),
        (np.diag([1, np.nan]), "H: nan at"),
        (np.diag([1.0, -1]), "H: -1 on its diagonal"),
        (np.array([[1.0, 1], [0, 1]]), "H: must be symmetric"),
        (np.array([[1.0, 2], [2, 1]]), r"H: 2 at \[0, 1\], must be at most 1 beside its diagonal"),
        (np.eye(3) * 1j, "H: complex128, must be real numbers"),
    ],
)
def test_matrices_that_are_no_gram_matrix(H, message):
    with pytest.raises(ValueError, match=message):
        codegemm.Calibration.of(H, 1)


def test_what_is_no_gram_matrix_though_no_two_columns_tell(matrix):
    H = np.full((matrix.shape[1],) * 2, -0.9) + 1.9 * np.eye(matrix.shape[1])
    with pytest.raises(ValueError, match="calibration: its H has negative eigenvalues"):
        codegemm.quantize(matrix, "m1v4b4", calibration=codegemm.Calibration.of(H, 5))


@pytest.mark.parametrize("rows", [-1, 2.5, "4"])
def test_no_number_of_rows(rows):
    with pytest.raises(ValueError, match=f"rows={rows!r}"):
        codegemm.Calibration.of(np.eye(3), rows)


def test_names_that_no_file_holds(tmp_path):
    with pytest.raises(ValueError, match="can't be that of a calibration"):
        calibration.save(tmp_path / "c", {"a\udcff": codegemm.Calibration.of(np.eye(3), 1)})
    assert not list(tmp_path.iterdir())


def test_a_matrix_that_must_not_be_written_to(rng):
    pytest.importorskip("torch")
    matrix, seen = rng.standard_normal((3, 8)), codegemm.Calibration.of(np.eye(8), 8)
    matrix.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codegemm.quantize(matrix, "m1v1b6g4", calibration=seen, backend="torch")


@pytest.mark.parametrize("in_features", [0, -1, 2.5, "4"])
def test_no_number_of_inputs(in_features):
    with pytest.raises(ValueError, match=f"in_features={in_features!r}"):
        codegemm.Calibration(in_features)


def test_calibrations_are_stored(tmp_path, inputs):
    path = tmp_path / "inputs.safetensors"
    made = {"a.b": summed(inputs), "c": summed(inputs[:9, :5])}
    calibration.save(path, made)
    found = calibration.load(path)
    assert found.keys() == made.keys()
    for name, one in found.items():
        assert one.rows == made[name].rows
        assert (one.H == made[name].H).all()


def test_files_without_calibrations(tmp_path, matrix):
    path = tmp_path / "weights.safetensors"
    codegemm.save_all(path, {"w": codegemm.quantize(matrix[:8], "m1v4b4")})
    with pytest.raises(codegemm.CheckpointError, match="holds no calibration"):
        calibration.load(path)
    codegemm.save_all(path, {}, {"w.gram": np.eye(3)})
    with pytest.raises(codegemm.CheckpointError, match="w: rows=None"):
        calibration.load(path)
    codegemm.save_all(path, {}, {"w.gram": np.eye(3)[:2]}, {"w": "1"})
    with pytest.raises(codegemm.CheckpointError, match=r"w: H is F64 \[2, 3\], must be \[in_features"):
        calibration.load(path)


def test_rotation_makes_any_matrix_as_easy_as_a_gaussian(rng):
    gaussian = rng.standard_normal((64, 256), np.float32)
    heavy = rng.standard_t(3, (64, 256)).astype(np.float32)
    errors = [
        np.linalg.norm(matrix - codegemm.quantize(matrix, "m1v4b6", rotate=rotate).dequantize()) ** 2
        / np.linalg.norm(matrix) ** 2
        for matrix, rotate in ((gaussian, False), (heavy, True))
    ]
    assert errors[1] < 1.1 * errors[0]


def test_a_rotated_weight_is_a_transformed_one(matrix):
    rotated = codegemm.quantize(matrix, "m1v4b6", rotate=True)
    assert isinstance(rotated, codegemm.TransformedWeight)
    assert codegemm.quantize(matrix, "m1v4b6+rotated") == rotated
    assert rotated.spec.block == default_block(K)
    assert set(np.unique(rotated.signs)) == {-1, 1}


def test_a_rotated_weight_is_that_of_the_rotated_matrix(matrix, inputs):
    made = codegemm.quantize(matrix, "m2v8b4", calibration=summed(inputs), rotate=True, seed=5)
    turned = Rotation(made.signs, default_block(K)).rotate(matrix)
    x = Rotation(made.signs, default_block(K)).rotate(inputs.astype(np.float64))
    again = codegemm.quantize(turned, "m2v8b4", calibration=codegemm.Calibration.of(x.T @ x, 1), seed=5)
    assert output_error(turned, again, x) == pytest.approx(output_error(matrix, made, inputs), rel=0.02)


def test_a_calibrated_weight_of_any_layout(inputs, rng):
    """Shapes that no block size divides."""
    x = inputs[:, :60]
    matrix = np.asfortranarray(rng.standard_normal((67, 60), np.float32))
    free, made = without_and_with(summed(x), matrix, "m2v6b3g12")
    assert output_error(matrix, made, x) < 0.75 * output_error(matrix, free, x)


def test_the_data_free_start_is_shared(matrix, inputs, monkeypatch):
    """Calibration goes on from it: one quantiser, not two."""
    calls = []
    quantize = additive.quantize
    monkeypatch.setattr(additive, "quantize", lambda *a: calls.append(1) or quantize(*a))
    codegemm.quantize(matrix, "m1v4b4", calibration=summed(inputs))
    assert calls == [1]
