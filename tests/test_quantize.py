"""The quantisers: error, determinism, unusual matrices, mistakes."""

import numpy as np
import pytest

import codegemm
from codegemm.quantize import additive
from codegemm.quantize.kmeans import assign
from codegemm.quantize.search import decode, encode


def relative_mse(matrix, weight):
    return ((matrix - weight.dequantize(np.float64)) ** 2).sum() / (matrix.astype(np.float64) ** 2).sum()


@pytest.fixture
def gaussian():
    return np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)


# Small matrices are easier than large ones: their codebooks fit them more closely. The benchmark measures a large one.
@pytest.mark.parametrize(
    ("config", "limit"), [("m1v4g-1", 0.099), ("m2v8g-1", 0.094), ("m1v4b4g64", 0.37), ("e8p", 0.093)]
)
def test_error_on_gaussian_weights(config, limit, gaussian):
    weight = codegemm.quantize(gaussian, config)
    assert weight.shape == gaussian.shape
    assert relative_mse(gaussian, weight) <= limit
    if config != "e8p":
        assert str(weight.config) == config


def test_the_seed_decides(gaussian):
    for config in ("m2v8b4g64", "e8p"):
        part = gaussian[:64]
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
    monkeypatch.setattr(additive, "_refit_scales", lambda groups, decoded, scales: scales)
    assert fitted < 0.996 * relative_mse(gaussian, codegemm.quantize(gaussian, "m1v4b4g16"))


def test_codebooks_are_drawn_to_where_the_error_is(gaussian, monkeypatch):
    """Rows of large and small weights of different kinds: the large ones decide the squared error."""
    matrix = gaussian.copy()
    matrix[128:] = 0.01 * np.sign(matrix[128:])
    drawn = relative_mse(matrix, codegemm.quantize(matrix, "m1v4b4g-1"))
    monkeypatch.setattr(additive.np, "repeat", lambda weights, count: np.ones(weights.size * count))
    assert drawn < 0.99 * relative_mse(matrix, codegemm.quantize(matrix, "m1v4b4g-1"))


def test_joint_search_is_better_than_greedy(gaussian):
    vectors = gaussian.reshape(-1, 8)[:4096]
    sizes = np.array([0.8, 0.6], np.float32)[:, None, None]
    books = sizes * np.random.default_rng(1).standard_normal((2, 64, 8), np.float32)
    greedy_first = assign(vectors, books[0])
    greedy_second = assign(vectors - books[0][greedy_first], books[1])
    greedy = ((vectors - books[0][greedy_first] - books[1][greedy_second]) ** 2).sum()
    beam = ((vectors - decode(encode(vectors, books, 8), books)) ** 2).sum()
    sums = (books[0][:, None] + books[1][None]).reshape(-1, 8)
    best = ((vectors - sums[assign(vectors, sums)]) ** 2).sum()
    assert best <= beam * (1 + 1e-6)
    assert beam <= 1.02 * best
    assert beam < 0.95 * greedy


def test_scales_follow_the_groups(gaussian):
    sizes = 2.0 ** np.arange(-4, 4).repeat(128)
    matrix = (gaussian * sizes).astype(np.float32)
    by_group = codegemm.quantize(matrix, "m1v4g128")
    by_row = codegemm.quantize(matrix, "m1v4g-1")
    small = slice(0, 128)
    fine = ((matrix - by_group.dequantize())[:, small] ** 2).sum() / (matrix[:, small] ** 2).sum()
    coarse = ((matrix - by_row.dequantize())[:, small] ** 2).sum() / (matrix[:, small] ** 2).sum()
    assert fine < 0.12 < coarse


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e3, 1e6])
def test_small_and_large_weights(size, gaussian):
    matrix = (size * gaussian[:64]).astype(np.float32)
    for config in ("m2v8b4g64", "e8p"):
        reference = relative_mse(gaussian[:64], codegemm.quantize(gaussian[:64], config))
        assert relative_mse(matrix, codegemm.quantize(matrix, config)) <= 1.02 * reference


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
    for config in ("m1v4g64", "m2v8", "e8p"):
        zero = codegemm.quantize(np.zeros((16, 64)), config)
        assert not zero.dequantize().any()


def test_fewer_vectors_than_centroids(gaussian):
    matrix = gaussian[:4, :64]
    assert relative_mse(matrix, codegemm.quantize(matrix, "m1v4")) < 1e-4
    assert relative_mse(matrix, codegemm.quantize(matrix, "m2v8")) < 1e-4


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes(dtype, gaussian):
    part = gaussian[:32].astype(dtype)
    assert codegemm.quantize(part, "m1v4b4") == codegemm.quantize(part.astype(np.float32), "m1v4b4")


@pytest.mark.parametrize(
    ("matrix", "config", "kind", "message"),
    [
        (np.ones(64), "m1v4", ValueError, r"W: shape \(64,\), must be"),
        (np.ones((0, 64)), "m1v4", ValueError, r"W: shape \(0, 64\)"),
        (np.ones((4, 64), int), "m1v4", TypeError, "W: dtype int64, must be one of"),
        (np.full((4, 64), np.nan), "m1v4", ValueError, r"W: nan at \[0, 0\], must be finite"),
        (np.full((4, 64), 1e39), "m1v4", ValueError, r"W: inf at \[0, 0\]"),
        (np.ones((4, 62)), "m1v4", ValueError, "in_features=62: must be a multiple of the vector length v=4"),
        (np.ones((4, 64)), "m1v4g48", ValueError, "in_features=64: must be a multiple of the group size g=48"),
        (np.ones((4, 64)), "m1v4g128x", ValueError, "configuration 'm1v4g128x': expected"),
        (np.ones((4, 64)), 3, TypeError, "config 3: must be"),
        (np.ones((4, 64)), "e8p", ValueError, "out_features=4: E8P needs a multiple of 16"),
        (np.ones((16, 60)), "e8p", ValueError, "in_features=60: E8P needs a multiple of 64"),
        (np.ones((4, 64)), "m2v8b16", ValueError, "needs a table of 64.0 GiB, at most 1 are allowed"),
        (np.full((4, 64), 1e30), "m1v4", ValueError, "do not fit float16"),
    ],
)
def test_mistakes_are_named(matrix, config, kind, message):
    with pytest.raises(kind, match=message):
        codegemm.quantize(matrix, config)


def test_a_progress_bar_goes_to_standard_error(gaussian, capsys):
    codegemm.quantize(gaussian[:16, :64], "m1v4b4", progress=True)
    codegemm.quantize(gaussian[:16, :64], "e8p", progress=True)
    assert capsys.readouterr().out == ""
