"""The quantisers: error, determinism, unusual matrices."""

import numpy as np
import pytest
from support.backends import BACKENDS
from support.gaussian import of_normal, relative_mse

import codegemm
from codegemm.formats.codebook import decode
from codegemm.quantize import additive, arithmetic, least_squares
from codegemm.quantize.schedule import Pass
from codegemm.quantize.search import encode


# Small matrices are easier than large ones: their codebooks fit them more closely. The benchmark measures a large one.
@pytest.mark.parametrize(
    ("config", "limit"), [("m1v4g-1", 0.099), ("m2v8g-1", 0.094), ("m1v4b4g64", 0.37), ("e8p", 0.093), ("qtip", 0.0715)]
)
def test_error_on_gaussian_weights(config, limit, gaussian):
    fixed = config in ("e8p", "qtip")  # for whose codes every size is as hard
    matrix = gaussian[:128, :512] if fixed else gaussian
    weight = codegemm.quantize(matrix, config)
    assert weight.shape == matrix.shape
    assert relative_mse(matrix, weight) <= limit
    if not fixed:
        assert str(weight.config) == config


def test_the_seed_decides(gaussian):
    for config in ("m2v8b4g64", "e8p", "qtip"):
        part = gaussian[:32, :128]
        first = codegemm.quantize(part, config, seed=1)
        assert codegemm.quantize(part, config, seed=1) == first
        assert codegemm.quantize(part, config, seed=2) != first


def test_configurations_of_any_kind(gaussian):
    part = gaussian[:40, :180]
    for config in ("m1v3b2g9", "m3v5b4g15", "m2v1b2g-1", "m1v12b9g36", "m4v2b1g2"):
        weight = codegemm.quantize(part, codegemm.CodebookConfig.parse(config))
        assert str(weight.config) == config
        assert relative_mse(part, weight) < 0.9


def test_scales_are_fitted_to_the_codes(gaussian, monkeypatch):
    fitted = relative_mse(gaussian, codegemm.quantize(gaussian, "m1v4b4g16"))
    fit = additive._fit_scales
    monkeypatch.setattr(
        additive, "_fit_scales", lambda groups, decoded, scales: (scales, fit(groups, decoded, scales)[1])
    )
    assert fitted < 0.996 * relative_mse(gaussian, codegemm.quantize(gaussian, "m1v4b4g16"))


def test_codebooks_are_drawn_to_where_the_error_is(gaussian, monkeypatch):
    """Rows of large and small weights of different kinds: the large ones decide the squared error."""
    matrix = gaussian.copy()
    matrix[128:] = 0.01 * np.sign(matrix[128:])
    drawn = relative_mse(matrix, codegemm.quantize(matrix, "m1v4b4g-1"))
    sums = additive.sums
    monkeypatch.setattr(additive, "sums", lambda vectors, codes, weights, *a: sums(vectors, codes, weights * 0 + 1, *a))
    assert drawn < 0.99 * relative_mse(matrix, codegemm.quantize(matrix, "m1v4b4g-1"))


@pytest.fixture
def books():
    sizes = np.array([0.8, 0.6, 0.4], np.float32)[:, None, None]
    return sizes * np.random.default_rng(1).standard_normal((3, 64, 8), np.float32)


def squared_error(vectors, codes, books):
    return ((vectors - decode(codes, books)) ** 2).sum()


@pytest.mark.parametrize("backend", BACKENDS)
def test_joint_search_is_better_than_greedy(backend, books, gaussian):
    """And the widest of two codebooks finds the best pair."""
    vectors, books, ops = gaussian.reshape(-1, 8)[:4096], books[:2], arithmetic.find(backend, 0)
    greedy_first = encode(vectors, books[:1], 1, ops)
    greedy_second = encode(vectors - decode(greedy_first, books[:1]), books[1:], 1, ops)
    greedy = squared_error(vectors, np.concatenate([greedy_first, greedy_second], 1), books)
    beam, widest = (squared_error(vectors, encode(vectors, books, width, ops), books) for width in (8, 64))
    sums = (books[0][:, None] + books[1][None]).reshape(1, -1, 8)
    best = squared_error(vectors, encode(vectors, sums, 1, ops), sums)
    assert best <= beam * (1 + 1e-6)
    assert beam <= 1.02 * best
    assert beam < 0.95 * greedy
    assert widest == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wider_beam_finds_better_sums_of_three(backend, books, gaussian):
    vectors, ops = gaussian.reshape(-1, 8)[:1000], arithmetic.find(backend, 0)
    narrow, wide = (squared_error(vectors, encode(vectors, books, beam, ops), books) for beam in (1, 16))
    assert wide < 0.9 * narrow


def test_the_smallest_scores():
    scores = np.random.default_rng(2).standard_normal((50, 300), np.float32)
    found = np.sort(np.take_along_axis(scores, arithmetic.smallest(scores, 7), 1), 1)
    assert (found == np.sort(scores, 1)[:, :7]).all()


def test_least_squares_finds_the_codebooks_behind_codes(books):
    """And leaves a centroid that no code names as it was."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 63, (20000, 3)).astype(np.uint16)
    vectors, weights = decode(codes, books), rng.uniform(0.5, 2, len(codes))
    present = np.zeros_like(books)
    present[:, 63] = 5
    for _ in range(3):
        present = least_squares.solve(least_squares.sums(vectors, codes, weights, 64), present)
    assert np.abs(decode(codes, present) - vectors).max() < 1e-3
    assert (present[:, 63] == 5).all()


def test_scales_follow_the_groups(gaussian):
    sizes = 2.0 ** np.arange(-4, 4).repeat(128)
    matrix = (gaussian * sizes).astype(np.float32)
    by_group = codegemm.quantize(matrix, "m1v4g128")
    by_row = codegemm.quantize(matrix, "m1v4g-1")
    fine, coarse = (
        ((matrix - weight.dequantize())[:, :128] ** 2).sum() / (matrix[:, :128] ** 2).sum()
        for weight in (by_group, by_row)
    )
    assert fine < 0.12 < coarse


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e3, 1e6])
def test_small_and_large_weights(size, gaussian):
    part = gaussian[:32, :128]
    matrix = (size * part).astype(np.float32)
    for config in ("m2v8b4g64", "e8p", "qtip"):
        reference = relative_mse(part, of_normal(config, 32, 128))
        assert relative_mse(matrix, codegemm.quantize(matrix, config)) <= 1.1 * reference


def row_errors(matrix, weight):
    """Relative squared errors [M]; of rows of zeros what they became."""
    sizes = (matrix.astype(np.float64) ** 2).sum(1)
    return ((matrix - weight.dequantize(np.float64)) ** 2).sum(1) / np.where(sizes > 0, sizes, 1)


ROTATING = ("e8p", "qtip")  # whose sizes of rows hold what float32 does
CONFIGS = ("m1v4b4g64", "m2v8b4g-1", "m1v4b4g64+rotated", *ROTATING)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1e7, 1e30])
def test_weights_far_from_one(config, size, gaussian):
    """Are as near as others, row by row, or refused; never zeros."""
    part = gaussian[:32, :128]
    matrix = part * np.float32(size)
    if config not in ROTATING and not 1e-9 < size < 1e9:
        with pytest.raises(ValueError, match=r"W: the largest weight is \S+e[+-]\d\d, .* do not fit float16 scales"):
            codegemm.quantize(matrix, config)
        return
    reference = row_errors(part, of_normal(config, 32, 128))
    errors = row_errors(matrix, codegemm.quantize(matrix, config))
    assert errors.mean() <= 1.1 * reference.mean()
    assert errors.max() <= 1.25 * reference.max()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("ratio", [1e-12, 1e-7, 1e6])
def test_rows_of_very_different_sizes(config, ratio, gaussian):
    part = gaussian[:32, :128]
    sizes = np.ones((32, 1), np.float32)
    sizes[1], sizes[2] = ratio, 0
    matrix = part * sizes
    if config not in ROTATING and ratio == 1e-12:
        with pytest.raises(ValueError, match=r"W: .* rows are from \S+e-1[23] to \S+: these do not fit float16 scales"):
            codegemm.quantize(matrix, config)
        return
    reference = row_errors(part, of_normal(config, 32, 128))
    errors = row_errors(matrix, codegemm.quantize(matrix, config))
    assert errors.max() <= (1.5 if ratio < 1 else 2) * reference.max()  # codebooks go where the squared error is
    assert errors[2] == 0


@pytest.mark.parametrize("ratio", [1e-12, 1e-6])
def test_groups_of_very_different_sizes(ratio, gaussian):
    """A small group has an error of its own size while scales reach; beside that a row does not notice it."""
    part = gaussian[:32, :128]
    matrix = (part * np.where(np.arange(128) // 64 == 1, ratio, 1)).astype(np.float32)
    reference = row_errors(part, of_normal("m1v4b4g64", 32, 128))
    weight = codegemm.quantize(matrix, "m1v4b4g64")
    assert row_errors(matrix, weight).max() <= 1.25 * reference.max()
    small = matrix[:, 64:].astype(np.float64)
    error = ((small - weight.dequantize(np.float64)[:, 64:]) ** 2).sum() / (small**2).sum()
    assert error <= (1.25 * reference.max() if ratio == 1e-6 else 1.01)


def test_unusual_rows(gaussian):
    matrix = gaussian[:64].copy()
    matrix[3] = 0
    matrix[5] = 0.25
    matrix[7, :64] = 0
    weight = codegemm.quantize(matrix, "m1v4g64")
    dense = weight.dequantize()
    assert not dense[3].any()
    assert not dense[7, :64].any()
    assert np.isfinite(dense).all()
    for config in ("m1v4g64", "m2v8", "e8p", "qtip4"):
        zero = codegemm.quantize(np.zeros((32, 64)), config)
        assert not zero.dequantize().any()


def test_fewer_vectors_than_centroids(gaussian):
    matrix = gaussian[:4, :64]
    assert relative_mse(matrix, codegemm.quantize(matrix, "m1v4")) < 1e-4
    assert relative_mse(matrix, codegemm.quantize(matrix, "m2v8")) < 1e-4


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes(dtype, gaussian):
    part = gaussian[:32].astype(dtype)
    assert codegemm.quantize(part, "m1v4b4") == codegemm.quantize(part.astype(np.float32), "m1v4b4")


def test_the_matrix_is_left_alone(gaussian):
    for config in ("m2v8b4g64", "e8p", "qtip"):
        matrix = gaussian[:32, :128].copy()
        codegemm.quantize(matrix, config)
        assert (matrix == gaussian[:32, :128]).all()


def test_a_search_for_scales_gains(gaussian, monkeypatch):
    """Where few weights share one."""
    fitted = relative_mse(gaussian, of_normal("m1v4g16"))
    encode_rows = additive._encode_rows
    monkeypatch.setattr(
        additive, "_encode_rows", lambda *a: encode_rows(*(Pass(x.beam) if isinstance(x, Pass) else x for x in a))
    )
    assert fitted < 0.985 * relative_mse(gaussian, codegemm.quantize(gaussian, "m1v4g16"))
