"""The error of the CPU's tables and products of integers, of the norm of each row of y, where x or the centroids have
outliers: what the large ones meet may be zero, or cancel, so that y does not grow with them."""

import numpy as np
import pytest
from support.cpu import check_threads, product, usable

import codegemm
from codegemm import checkpoints
from codegemm.engines.cpu import isa
from codegemm.formats import random_weight

MOST = {"psumbook": 2e-4, "psumbook_fast": 3e-2, "dequant": 2e-4, "dequant_fast": 1e-2}
EXACT = 1e-6  # of what tables of floats have multiplied
CONFIGS = ["m1v4g128", "m2v8g-1", "m3v4b5g64", "m1v8b3g32", "m1v4g4"]
SHAPES = [(300, 1024), (20, 2048)]


def errors(weight, x, kernels, bias=None):
    """(kernel, error of each row of x) for all of these."""
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    truth = truth if bias is None else truth + bias
    for kernel in kernels:
        y = codegemm.linear(x, weight, bias, kernel=kernel).astype(np.float64)
        yield kernel, np.linalg.norm(y - truth, axis=1) / np.linalg.norm(truth, axis=1)


def integers(weight, n):
    """The kernels of this engine that compute with integers."""
    return set(MOST) & set(usable(weight, n))


def check(weight, x, bias=None):
    """Every row by every kernel that computes with integers."""
    for name, found in errors(weight, x, integers(weight, len(x)), bias):
        assert (found <= MOST[name]).all(), (len(x), name, found.max())


def without(weight, vectors):
    """The weight with zeros for some k-vectors."""
    codes, codebooks = weight.codes.copy(), weight.codebooks.copy()
    codebooks[..., 0, :] = 0
    codes[:, vectors] = 0
    return codegemm.CodebookWeight(codes, codebooks, weight.scales)


@pytest.fixture(params=["here", *(each.name for each in isa.available()[1:])])
def instructions(request, monkeypatch, fresh_engine):
    """The instruction sets that this processor has."""
    if request.param != "here":
        monkeypatch.setenv(isa.VARIABLE, request.param)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.usefixtures("instructions")
def test_large_channels_that_meet_zeros(config, shape, make_weight, rng):
    weight = make_weight(*shape, config)
    vectors = rng.choice(weight.spec.vectors, 3, replace=False)
    weight, v = without(weight, vectors), weight.config.v
    for n in (1, 3, 7, 18):
        for times in (30, 300, 1e3, 1e4, 1e7):
            x = rng.standard_normal((n, shape[1])).astype(np.float32)
            x[:, vectors[0] * v] *= times
            x[-1, vectors[1] * v : vectors[1] * v + v] *= times
            check(weight, x)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("config", CONFIGS[:3])
def test_a_large_half_that_meets_zeros(config, dtype, make_weight, rng):
    """Not outliers, so many are they: the rows are multiplied again."""
    weight = make_weight(300, 1024, config)
    weight = without(weight, np.arange(weight.spec.vectors) * 2 < weight.spec.vectors)
    for n in (1, 2, 7, 18):
        x = rng.standard_normal((n, 1024)).astype(dtype)
        large = np.arange(n) % 3 == 0
        x[large, :512] *= 1000
        truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
        for name in integers(weight, n):
            y = product(weight, x, name, np.result_type(dtype, np.float32))
            error = np.linalg.norm(y - truth, axis=1) / np.linalg.norm(truth, axis=1)
            assert (error <= MOST[name]).all(), (n, name)
            assert (error[large] <= EXACT).all(), (n, name)


@pytest.mark.parametrize("n", [1, 5, 16])
def test_codebooks_that_cancel(n, rng):
    """The same centroids twice, one negative: what x meets is zero, but no entry of a table is."""
    weight = random_weight((200, 1024), "m2v8g128", int(rng.integers(1 << 31)))
    codes, codebooks = weight.codes.copy(), weight.codebooks.copy()
    codebooks[1, :128] = -codebooks[0, :128]
    codes[:, ::2, 0] %= 128
    codes[:, ::2, 1] = codes[:, ::2, 0]
    weight = codegemm.CodebookWeight(codes, codebooks, weight.scales)
    x = rng.standard_normal((n, 1024)).astype(np.float32)
    x.reshape(n, -1, 2, 8)[:, :, 0] *= 300
    for name, found in errors(weight, x, ("psumbook", "dequant")):
        assert (found <= MOST[name]).all(), name


@pytest.mark.parametrize("times", [5, 30, 1000])
def test_large_centroids(times, make_weight, rng):
    """A codebook's largest centroid is seldom or never meant; nor are those of `quantize` alike for heavy tails."""
    weight = make_weight(300, 1024, "m1v4g128")
    codebooks = weight.codebooks.copy()
    codebooks[0, 7] *= times
    codes = weight.codes.copy()
    codes[codes == 7] = 8
    weights = [codegemm.CodebookWeight(codes, codebooks, weight.scales)]
    weights += [codegemm.quantize(rng.standard_t(3, (128, 512)).astype(np.float32), "m1v4g-1")]
    for weight in weights:
        for n in (1, 18):
            x = rng.standard_normal((n, weight.shape[1])).astype(np.float32)
            check(weight, x)


@pytest.mark.parametrize("value", [1, -0.3, 60000])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_constant_x(config, value, make_weight):
    """All k-vectors have one table: what rounding does to it must not add up."""
    weight = make_weight(300, 1024, config)
    for n in (1, 4, 16):
        check(weight, np.full((n, 1024), value, np.float32))


@pytest.mark.parametrize("columns", [64, 128, 256, 512, 2048])
def test_two_centroids_and_numbers_alike(columns, rng):
    """Of a table of two entries all columns have the same or its mirror image; half of the rows nearly cancel."""
    codes = rng.integers(0, 2, (300, columns, 1)).astype(np.uint8)
    codes[150:] = np.stack([rng.permutation(columns) <= columns // 2 for _ in range(150)])[..., None]
    for size in rng.uniform(0.1, 2, 10):
        book = np.array([[[-size], [size]]], np.float16)
        for rows in (slice(0, 150), slice(150, 300)):
            weight = codegemm.CodebookWeight(codes[rows], book, np.ones((150, 1), np.float16))
            for n in (1, 5, 9):
                for x in (np.ones((n, columns)), rng.choice([-1, 1], (n, columns))):
                    check(weight, x.astype(np.float32))


def test_a_centroid_that_no_code_names(rng):
    """The others are all one, and small beside it."""
    book = np.full((1, 16, 1), 0.02, np.float16)
    book[0, 0] = -1
    for columns in (128, 4096):
        codes = rng.integers(1, 16, (300, columns, 1)).astype(np.uint8)
        weight = codegemm.CodebookWeight(codes, book, np.ones((300, 1), np.float16))
        for n in (1, 5, 9):
            check(weight, np.ones((n, columns), np.float32))


@pytest.mark.parametrize("apart", [0, 1e-4])
@pytest.mark.parametrize("config", CONFIGS)
def test_many_centroids_that_are_one(config, apart, rng):
    """Most of them are zero, or nearly: rows that name other codes look up the same entries."""
    for share in (0.8, 0.9):
        weight = random_weight((300, 1024), config, int(rng.integers(1 << 31)))
        books = weight.codebooks.astype(np.float32)
        books *= np.where(rng.random((*books.shape[:-1], 1)) < share, apart, 1)
        books[..., 0, :] = 1
        weight = codegemm.CodebookWeight(weight.codes, books.astype(np.float16), weight.scales)
        for n in (1, 7, 33):
            check(weight, rng.standard_normal((n, 1024)).astype(np.float32))


@pytest.mark.parametrize(("rows", "alike"), [(1, 1), (1000, 1000), (3, 1), (8, 1), (400, 8)])
def test_few_different_rows(rows, alike, rng):
    """An error is far from what is expected where few numbers make it up."""
    for _ in range(20):
        codes = np.repeat(rng.integers(0, 256, (rows // alike, 64, 1)), alike, 0).astype(np.uint8)
        book = rng.standard_normal((1, 256, 8)).astype(np.float16)
        weight = codegemm.CodebookWeight(codes, book, np.ones((rows, 1), np.float16))
        dense = weight.dequantize(np.float64)
        for n in (1, 16):
            x = rng.standard_normal((n, 512)).astype(np.float32)
            norms = np.linalg.norm(x @ dense.T, axis=1) / np.linalg.norm(x[:, None] * dense, axis=(1, 2))
            for name, found in errors(weight, x, integers(weight, n)):
                # Sums of floats can't tell what cancels to a thousandth.
                assert (found[norms > 1e-2] <= MOST[name]).all(), (n, name)


@pytest.mark.parametrize(("small", "scale"), [(1e-20, 1), (1e-30, 1), (1e-18, 6e-8)])
def test_much_smaller_numbers_than_the_largest(small, scale, rng):
    """The largest meet scales of 0, the others cancel: their squares leave float32's range."""
    codes = rng.integers(0, 128, (64, 256, 1)).astype(np.uint8)
    codes[:, 192:] = codes[:, 128:192] + 128
    book = rng.standard_normal((1, 256, 4))
    book[0, 128:] = -book[0, :128]
    scales = np.repeat([[0, scale]], 64, 0).astype(np.float16)
    weight = codegemm.CodebookWeight(codes, book.astype(np.float16), scales)
    for n in (1, 5, 9):
        x = rng.standard_normal((n, 1024))
        x[:, 768:] = x[:, 512:768] * (1 + 1e-2 * rng.standard_normal(256))  # less, and sums of floats can't tell
        x[:, 512:] *= small
        check(weight, x.astype(np.float32))


@pytest.mark.parametrize("apart", [0, 1, 2, 30])
@pytest.mark.parametrize("config", CONFIGS)
def test_centroids_that_are_nearly_one(config, apart, make_weight, rng):
    """No range, or one that is far from 0."""
    weight = make_weight(300, 1024, config)
    ulps = rng.integers(0, apart + 1, weight.codebooks.shape) * 2.0**-10
    weight = codegemm.CodebookWeight(weight.codes, (1 + ulps).astype(np.float16), weight.scales)
    for n in (1, 4, 16):
        x = rng.uniform(-1, 2, (n, 1024)).astype(np.float32)  # whose sums do not cancel
        check(weight, x)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_offsets_that_cancel_the_core(biased, dtype, rng):
    """Integers at their zero point: the core is large there, and the offsets take it away again."""
    integers = rng.integers(0, 16, (200, 1024))
    scales = rng.uniform(0.5, 1, (200, 8)).astype(np.float16)
    zeros = rng.integers(1, 15, (200, 8))
    large = rng.choice(1024, 40, replace=False)
    integers[:, large] = zeros[:, large // 128]
    weight = checkpoints.from_uniform(integers, scales, zeros, bits=4, group_size=128)
    assert isinstance(weight, codegemm.TransformedWeight)
    bias = rng.standard_normal(200).astype(np.float32) if biased else None
    for n in (1, 3, 18):
        x = rng.standard_normal((n, 1024)).astype(dtype)
        x[:, large] *= 30
        x[-1, large[0]] *= 100
        check(weight, x, bias)


@pytest.mark.parametrize(("kernel", "n"), [("psumbook", 2), ("psumbook", 3), ("psumbook", 16), ("dequant", 40)])
def test_a_row_does_not_depend_on_the_others(kernel, n, make_weight, rng):
    weight = make_weight(300, 1024, "m1v4g128")
    weight = without(weight, np.arange(128))
    x = rng.standard_normal((n, 1024)).astype(np.float32)
    alone = product(weight, x, kernel)
    other = x.copy()
    other[1, :512] *= 1e4  # multiplied again
    other[-1, 5] *= 1e3  # an outlier
    changed = product(weight, other, kernel)
    same = np.setdiff1d(np.arange(n), [1, n - 1])
    assert (changed[same] == alone[same]).all()


@pytest.mark.parametrize("mean", [0, 1, 30])
@pytest.mark.parametrize("config", ["m1v4g128", "m2v8b4g-1", "m1v1b4g64", "m1v1b2g64"])
def test_few_numbers_whose_roundings_add_up(config, mean, make_weight, rng):
    """x has two values, centroids lie around a mean: errors are alike, and sums that cancel do not show them."""
    for _ in range(5):
        weight = make_weight(300, 1024, config)
        books = (weight.codebooks.astype(np.float32) + mean).astype(np.float16)
        weight = codegemm.CodebookWeight(weight.codes, books, weight.scales)
        for n in (1, 16):
            for values in (rng.uniform(0.1, 1, 2), (1, -rng.uniform(0.5, 1)), (1, 1 + rng.uniform(0, 1e-3))):
                x = rng.choice(values, (n, 1024)).astype(np.float32)
                share = np.linalg.norm(x @ weight.dequantize(np.float64).T, axis=1) / np.linalg.norm(
                    np.abs(x) @ np.abs(weight.dequantize(np.float64)).T, axis=1
                )
                assert share.min() > 1e-4
                check(weight, x)


def test_roundings_that_cancel_between_groups_and_not_in_rows(make_weight, rng):
    """Two values, and in every second group the opposite ones: over all groups their roundings cancel, but not with the
    scales of each row."""
    for _ in range(20):
        weight = make_weight(300, 1024, "m1v4g128")
        books = (weight.codebooks.astype(np.float32) + 30).astype(np.float16)
        weight = codegemm.CodebookWeight(weight.codes, books, weight.scales)
        ones = rng.integers(11, 16, 16)[:, None]  # of a block of 32, for each row of x
        left = rng.uniform(2, 6, (16, 1))  # of a block's sum
        blocks = rng.uniform(0.5, 1, (16, 1)) * np.where(np.arange(32) < ones, 1, (left - ones) / (32 - ones))
        signs = np.repeat([1, -1], 4)
        check(weight, np.tile(np.einsum("g,nk->ngk", signs, blocks).reshape(16, -1), 4).astype(np.float32))


@pytest.mark.parametrize("config", ["m1v4g128", "m2v8b4g-1"])
def test_threads_change_nothing(config, make_weight, rng):
    weight = make_weight(3000, 1024, config)
    weight = without(weight, np.arange(weight.spec.vectors) * 2 < weight.spec.vectors)
    for n in (1, 3, 16, 70):
        x = rng.standard_normal((n, 1024)).astype(np.float32)
        x[0, :512] *= 1e4
        x[-1, 700] *= 1e3
        check_threads(weight, x, integers(weight, n), (1, 2, 3, 7, 2))
