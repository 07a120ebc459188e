"""Integers and bit planes of other projects, against their own definitions, bit for bit in float64."""

import itertools

import numpy as np
import pytest
from support import cpu

from codegemm import CheckpointError, CodebookWeight, TransformedWeight, arrays
from codegemm.checkpoints import from_awq, from_binary, from_gptq, from_uniform
from codegemm.checkpoints.binary import signs_per_code
from codegemm.checkpoints.uniform import integers_per_code

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def groups_of(values, columns):
    """[M, K/g] -> [M, K] in float64."""
    return np.repeat(np.asarray(values, np.float64), columns // values.shape[1], axis=1)


def draw(rng, bits, rows, columns, groups):
    integers = rng.integers(0, 1 << bits, (rows, columns))
    scales = rng.standard_normal((rows, groups)).astype(np.float16)
    zeros = rng.integers(0, (1 << bits) + 1, (rows, groups))
    return integers, scales, zeros


def words_of(values, bits):
    """Each row's integers as uint32 words, one after the other from the lowest bits, through one big number."""
    made = []
    for row in values:
        number = sum(int(value) << bits * i for i, value in enumerate(row))
        count = -(-len(row) * bits // 32)
        made.append([number >> 32 * i & 0xFFFFFFFF for i in range(count)])
    return np.array(made, np.uint32).view(np.int32)


def check_products(weight, dense, rng, *, added=None):
    """It is these numbers; the products of all kernels, in terms of the size of what is added for each.

    added: that size; tables are rounded in terms of the largest centroid, be it taken or not.
    """
    added = abs(dense) if added is None else added
    assert np.array_equal(weight.dequantize(np.float64), dense)
    for n in (1, 3, 16, 40):
        x = (rng.standard_normal((n, dense.shape[1])) + 0.5).astype(np.float32)
        names = set(cpu.usable(weight, n)) - {"dense_bf16"}
        cpu.check_products(weight, x, names, np.linalg.norm(abs(x).astype(np.float64) @ added.T))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("rows", "columns", "groups"), [(33, 96, 4), (5, 60, 12), (7, 64, 1), (3, 21, 3), (1, 9, 9)])
def test_uniform_groups(bits, rows, columns, groups, rng):
    integers, scales, zeros = draw(rng, bits, rows, columns, groups)
    dense = groups_of(scales, columns) * (integers - groups_of(zeros, columns))
    weight = from_uniform(integers, scales, zeros, bits=bits)
    assert np.array_equal(weight.dequantize(np.float32), dense)
    core = weight.core if isinstance(weight, TransformedWeight) else weight
    assert core.config.v == integers_per_code(bits, columns // groups)
    assert core.config.b == bits * core.config.v
    check_products(weight, dense, rng, added=groups_of(scales, columns) * (2**bits + abs(groups_of(zeros, columns))))


def test_equal_zero_points_are_in_the_codebook(rng):
    integers, scales, _ = draw(rng, 4, 8, 32, 2)
    for zeros in (8, 7.5, np.full((8, 2), 3)):
        weight = from_uniform(integers, scales, zeros, bits=4)
        assert isinstance(weight, CodebookWeight)
        assert np.array_equal(weight.dequantize(np.float64), groups_of(scales, 32) * (integers - np.mean(zeros)))


def test_fractional_zero_points(rng):
    integers, scales, _ = draw(rng, 4, 8, 32, 4)
    for low, high in ((7, 9), (0, 1e-3)):
        zeros = rng.uniform(low, high, (8, 4)).astype(np.float16)
        zeros[0] = 8
        weight = from_uniform(integers, scales.astype(np.float32), zeros, bits=4)
        dense = groups_of(scales, 32) * (integers - groups_of(zeros, 32))
        assert np.array_equal(weight.dequantize(np.float64), dense)


def test_integers_and_signs_of_a_code():
    assert [integers_per_code(bits, group) for bits, group in itertools.product((2, 3, 4), (128, 6, 7))] == [
        4, 2, 1, 2, 2, 1, 2, 2, 1,
    ]  # fmt: skip
    assert [signs_per_code(group) for group in (128, 12, 7, 11, 1)] == [8, 6, 7, 1, 1]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gptq(bits, version, groups, rng):
    rows, columns = 32, 128
    integers, scales, zeros = draw(rng, bits, rows, columns, groups)
    zeros = np.clip(zeros, 1, 1 << bits) if version == 1 else zeros % (1 << bits)
    qweight = words_of(integers, bits).T
    qzeros = words_of((zeros - (version == 1)).T, bits)
    assert qweight.shape == (columns * bits // 32, rows)
    assert qzeros.shape == (groups, rows * bits // 32)
    weight = from_gptq(
        qweight, qzeros, scales.T, np.arange(columns, dtype=np.int32) // (columns // groups), bits=bits, version=version
    )
    dense = groups_of(scales, columns) * (integers - groups_of(zeros, columns))
    assert np.array_equal(weight.dequantize(np.float64), dense)
    assert weight == from_gptq(qweight, qzeros, scales.T, bits=bits, version=version)


def test_gptq_of_three_bits_word_by_word():
    """32 integers in three words: the 11th and the 22nd lie across two of them."""
    integers = np.arange(32) * 5 % 8
    first = sum(int(q) << 3 * i for i, q in enumerate(integers[:10])) | (int(integers[10]) & 3) << 30
    second = int(integers[10]) >> 2 | sum(int(q) << 3 * i + 1 for i, q in enumerate(integers[11:21]))
    second |= (int(integers[21]) & 1) << 31
    third = int(integers[21]) >> 1 | sum(int(q) << 3 * i + 2 for i, q in enumerate(integers[22:]))
    qweight = np.array([[first], [second], [third]], np.uint32)
    weight = from_gptq(qweight, np.array([[3]], np.uint32), np.ones((1, 1), np.float16), bits=3)
    assert np.array_equal(weight.dequantize(np.float64)[0], integers - 4)


@pytest.mark.parametrize("groups", [1, 3])
def test_awq(groups, rng):
    rows, columns = 24, 48
    integers, scales, zeros = draw(rng, 4, rows, columns, groups)
    zeros %= 16

    def pack(values):
        words = np.zeros((len(values), rows // 8), np.uint32)
        for i, place in enumerate(AWQ_ORDER):
            words |= values[:, place::8].astype(np.uint32) << np.uint32(4 * i)
        return words.view(np.int32)

    weight = from_awq(pack(integers.T), pack(zeros.T), scales.T)
    dense = groups_of(scales, columns) * (integers - groups_of(zeros, columns))
    assert np.array_equal(weight.dequantize(np.float64), dense)


@pytest.mark.parametrize("with_offsets", [False, True])
@pytest.mark.parametrize(("count", "rows", "columns", "groups"), [(3, 33, 96, 4), (1, 5, 22, 2), (2, 7, 64, 1)])
def test_binary_planes(count, rows, columns, groups, with_offsets, rng):
    planes = rng.choice(np.array([-1, 1], np.int8), (count, rows, columns))
    # of few bits, so that sums in any order are exact
    alphas = (rng.integers(-99, 99, (rows, groups, count)) / 64).astype(np.float16)
    offsets = rng.integers(-9, 9, (rows, groups)).astype(np.float16) if with_offsets else None
    weight = from_binary(planes, alphas, offsets)
    dense = sum(groups_of(alphas[..., i], columns) * planes[i] for i in range(count))
    if with_offsets:
        dense = dense + groups_of(offsets, columns)
    assert weight == from_binary(planes > 0, alphas.astype(np.float32), offsets)
    check_products(weight, dense, rng)


def test_scales_in_bfloat16(rng):
    integers, scales, zeros = draw(rng, 4, 8, 32, 4)
    narrow = scales.astype(arrays.bfloat16())
    weight = from_uniform(integers, narrow, zeros, bits=4)
    dense = groups_of(narrow, 32) * (integers - groups_of(zeros, 32))
    assert np.array_equal(weight.dequantize(np.float64), dense)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 5}, "bits=5: must be one of 2, 3, 4"),
        ({"integers": np.full((4, 16), 16)}, "integers: 16 to 16, must be from 0 to 15"),
        ({"integers": np.full((4, 16), -1)}, "integers: -1 to -1"),
        ({"integers": np.ones((4, 16))}, "integers: dtype float64"),
        (
            {"scales": np.ones((4, 3), np.float16)},
            r"scales: shape \(4, 3\), must be \[4, n\] with n a divisor of the integers' 16 columns",
        ),
        ({"scales": np.full((4, 2), 0.1)}, r"scales: 0.1 at \[0, 0\] is not exactly a finite float16"),
        ({"scales": np.full((4, 2), 1e9)}, "is not exactly a finite float16"),
        ({"scales": np.full((4, 2), np.nan)}, "is not exactly a finite float16"),
        ({"zeros": np.ones((4, 3), int)}, r"zeros: shape \(4, 3\), must be \(4, 2\)"),
        ({"zeros": np.full((4, 2), np.inf)}, "zeros: inf, must be finite"),
        ({"zeros": np.linspace(0.1, 0.7, 8).reshape(4, 2)}, "zeros: -0.1 at"),
    ],
)
def test_bad_integers_are_refused(change, message):
    given = {"integers": np.ones((4, 16), int), "scales": np.ones((4, 2), np.float16), "zeros": 1, "bits": 4} | change
    with pytest.raises(CheckpointError, match=message):
        from_uniform(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version=3: must be one of 1, 2"),
        ({"bits": 8}, "bits=8"),
        ({"qweight": np.zeros((4, 7), np.int32)}, r"qweight: shape \(4, 7\), must be \[K\*4/32, 8\]"),
        ({"qzeros": np.zeros((2, 2), np.int32)}, r"qzeros: shape \(2, 2\), must be \(2, 1\)"),
        ({"qweight": np.zeros((4, 8), np.int64)}, "qweight: dtype int64"),
        ({"bits": 3}, "its first must be a multiple of 3"),
        ({"g_idx": np.zeros(31, np.int32)}, r"g_idx: shape \(31,\)"),
        ({"g_idx": np.arange(32, dtype=np.int32) % 2}, r"g_idx: column 1 is of group 1.*desc_act"),
        ({"scales": np.ones((3, 8), np.float16), "qzeros": np.zeros((3, 1), np.int32)}, "3 groups, must divide the 32"),
    ],
)
def test_bad_gptq_layers_are_refused(change, message):
    given = {
        "qweight": np.zeros((4, 8), np.int32), "qzeros": np.zeros((2, 1), np.int32),
        "scales": np.ones((2, 8), np.float16), "bits": 4,
    } | change  # fmt: skip
    with pytest.raises(CheckpointError, match=message):
        from_gptq(**given)


def test_other_bad_layers_are_refused():
    words, ones = np.zeros((16, 2), np.int32), np.ones((2, 16), np.float16)
    with pytest.raises(CheckpointError, match=r"qzeros: shape \(3, 2\), must be \[2, M/8\]"):
        from_awq(words, np.zeros((3, 2), np.int32), ones)
    with pytest.raises(CheckpointError, match=r"qweight: shape \(16, 2\), must be \[16, M/8\] for scales of M=15"):
        from_awq(words, words[:2], ones[:, :15])
    planes = np.ones((2, 3, 8))
    with pytest.raises(CheckpointError, match=r"alphas: shape \(3, 2, 3\), must be \[3, n, 2\]"):
        from_binary(planes, np.ones((3, 2, 3), np.float16))
    with pytest.raises(CheckpointError, match=r"planes: 0\.0, must be 1 or -1"):
        from_binary(0 * planes, np.ones((3, 2, 2), np.float16))
    with pytest.raises(CheckpointError, match=r"offsets: shape \(3, 1\)"):
        from_binary(planes, np.ones((3, 2, 2), np.float16), np.ones((3, 1), np.float16))
    assert issubclass(CheckpointError, ValueError)
