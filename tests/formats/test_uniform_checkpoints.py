"""Integers and bit planes of other projects, against their own definitions, bit for bit in float64."""

import itertools
import warnings

import numpy as np
import pytest
from support import cpu

import codegemm
from codegemm import CheckpointError, CodebookWeight, TransformedWeight, arrays
from codegemm.checkpoints import from_awq, from_binary, from_gptq, from_lutgemm, from_uniform
from codegemm.checkpoints.binary import signs_per_code
from codegemm.checkpoints.uniform import integers_per_code

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def groups_of(values, columns, size=None):
    """[M, K/g] -> [M, K] in float64; the last group may be short."""
    size = columns // values.shape[1] if size is None else size
    return np.asarray(values, np.float64)[:, np.arange(columns) // size]


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


def version_1(zeros, bits, writer=None):
    """Zero points [groups, M] as version 1 stores them: a word of 32 bits less its ones, or 3 bits one by one."""
    if bits == 3 and writer is None:
        return words_of((zeros - 1) % 8, 3)
    ones = {2: [0x55555555], 4: [0x11111111], 3: [0x24924924, 0x92492492, 0x49249249]}[bits]
    words = words_of(zeros, bits)
    less = [[(int(word) - ones[i % len(ones)]) & 0xFFFFFFFF for i, word in enumerate(row)] for row in words]
    return np.array(less, np.uint32).view(np.int32)


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
    weight = from_uniform(integers, scales, zeros, bits=bits, group_size=columns // groups)
    assert np.array_equal(weight.dequantize(np.float32), dense)
    core = weight.core if isinstance(weight, TransformedWeight) else weight
    assert core.config.v == integers_per_code(bits, columns // groups)
    assert core.config.b == bits * core.config.v
    sizes = 2**bits + abs(groups_of(zeros, columns))
    check_products(weight, dense, rng, added=abs(groups_of(scales, columns)) * sizes)


def test_equal_zero_points_are_in_the_codebook(rng):
    integers, scales, _ = draw(rng, 4, 8, 32, 2)
    for zeros in (8, 7.5, np.full((8, 2), 3)):
        weight = from_uniform(integers, scales, zeros, bits=4)
        assert isinstance(weight, CodebookWeight)
        assert np.array_equal(weight.dequantize(np.float64), groups_of(scales, 32) * (integers - np.mean(zeros)))


def test_fractional_zero_points(rng):
    integers, scales, _ = draw(rng, 4, 8, 64, 4)
    for low, high in ((7, 9), (0, 1e-3)):
        zeros = rng.uniform(low, high, (8, 4)).astype(np.float16)
        zeros[0] = 8
        weight = from_uniform(integers, scales.astype(np.float32), zeros, bits=4)
        dense = groups_of(scales, 64) * (integers - groups_of(zeros, 64))
        assert np.array_equal(weight.dequantize(np.float64), dense)


def test_integers_and_signs_of_a_code():
    assert [integers_per_code(bits, group) for bits, group in itertools.product((2, 3, 4), (128, 6, 7))] == [
        4, 2, 1, 2, 2, 1, 2, 2, 1,
    ]  # fmt: skip
    assert [signs_per_code(group) for group in (128, 12, 7, 11, 1)] == [8, 6, 7, 1, 1]


@pytest.mark.parametrize(("version", "writer"), [(1, None), (1, "gptqmodel"), (2, None)])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gptq(bits, version, writer, groups, rng):
    """With all zero points, 0 among them."""
    rows, columns = 96, 128
    integers, scales, zeros = draw(rng, bits, rows, columns, groups)
    zeros %= 1 << bits
    qweight = words_of(integers, bits).T
    qzeros = version_1(zeros.T, bits, writer) if version == 1 else words_of(zeros.T, bits)
    assert qweight.shape == (columns * bits // 32, rows)
    assert qzeros.shape == (groups, rows * bits // 32)
    weight = from_gptq(
        qweight, qzeros, scales.T, np.arange(columns, dtype=np.int32) // (columns // groups), bits=bits,
        version=version, writer=writer,
    )  # fmt: skip
    dense = groups_of(scales, columns) * (integers - groups_of(zeros, columns))
    assert np.array_equal(weight.dequantize(np.float64), dense)
    assert weight == from_gptq(qweight, qzeros, scales.T, bits=bits, version=version, writer=writer)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_zero_points_from_one_on_are_stored_alike(bits, rng):
    """A writer that subtracts from each leaves what one leaves that subtracts from words."""
    zeros = rng.integers(1, 1 << bits, (2, 32))
    words = words_of(zeros - 1, bits)
    assert np.array_equal(words, version_1(zeros, bits))
    integers = rng.integers(0, 1 << bits, (32, 64))
    weight = from_gptq(words_of(integers, bits).T, words, np.ones((2, 32), np.float16), bits=bits)
    assert np.array_equal(weight.dequantize(np.float64), integers - groups_of(zeros.T, 64))


def test_a_layer_of_few_rows_has_a_word_in_part(rng):
    """Five rows of 4 bits, seven of 3 (by words, of which one is there)."""
    for bits, rows, writer in ((4, 5, None), (3, 7, "gptqmodel"), (3, 7, None)):
        integers, scales, zeros = draw(rng, bits, rows, 96, 3)
        zeros %= 1 << bits
        weight = from_gptq(
            words_of(integers, bits).T, version_1(zeros.T, bits, writer), scales.T, bits=bits, writer=writer
        )
        dense = groups_of(scales, 96) * (integers - groups_of(zeros, 96))
        assert np.array_equal(weight.dequantize(np.float64), dense)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_zero_points_of_symmetric_integers_tell_the_version_and_the_writer(bits, rng):
    """Where they would all be in the middle if they were read in another way."""
    integers, scales, _ = draw(rng, bits, 32, 64, 2)
    symmetric = np.full((2, 32), 1 << bits - 1)
    stored = {(2, None): words_of(symmetric, bits), (1, None): version_1(symmetric, bits)}
    if bits == 3:
        stored[1, "gptqmodel"] = version_1(symmetric, bits, "gptqmodel")
    dense = groups_of(scales, 64) * (integers - (1 << bits - 1))
    for right, given in itertools.product(stored, repeat=2):
        arguments = words_of(integers, bits).T, stored[right], scales.T
        how = {"bits": bits, "version": given[0], "writer": given[1]}
        if right == given:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert np.array_equal(from_gptq(*arguments, **how).dequantize(np.float64), dense)
            continue
        said = f"version={right[0]}" + (" of gptqmodel" if right[1] else "")
        with pytest.warns(UserWarning, match=rf"all {1 << bits - 1}, .* most likely it is {said}$") as told:
            from_gptq(*arguments, **how)
        assert [one.filename for one in told] == [__file__]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_lies_behind_the_last_zero_point_means_nothing(bits, rng):
    rows = 40 if bits == 3 else 36
    integers, scales, zeros = draw(rng, bits, rows, 64, 4)
    zeros = np.maximum(zeros % (1 << bits), 1)
    stored = words_of(zeros.T - 1, bits).view(np.uint32)
    stored[:, -1] |= np.uint32((1 << 32) - (1 << rows * bits % 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight = from_gptq(words_of(integers, bits).T, stored, scales.T, bits=bits)
    assert np.array_equal(weight.dequantize(np.float64), groups_of(scales, 64) * (integers - groups_of(zeros, 64)))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_zero_points_lost_above_a_zero_are_told(bits, rng):
    """Of a writer that leaves 32 bits of ones where it subtracts one from nothing."""
    zeros = rng.integers(1, 1 << bits, (2, 32))
    integers = rng.integers(0, 1 << bits, (32, 64))
    for place in (0, 1, 9) if bits == 3 else (0, 1, 32 // bits - 2):
        stored = words_of(zeros - 1, bits).view(np.uint32)
        stored[1, 0] |= np.uint32(0xFFFFFFFF << bits * place & 0xFFFFFFFF)
        arguments = words_of(integers, bits).T, stored, np.ones((2, 32), np.float16)
        if (bits, place) == (3, 9):  # two bits are left above it, which may well be ones
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                from_gptq(*arguments, bits=bits)
            continue
        with pytest.warns(UserWarning, match="nothing but ones above each zero point of 0"):
            from_gptq(*arguments, bits=bits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for right in (zeros, np.arange(64).reshape(2, 32) % (1 << bits)):
            from_gptq(words_of(integers, bits).T, version_1(right, bits), np.ones((2, 32), np.float16), bits=bits)


@pytest.mark.parametrize(("columns", "size"), [(320, 64), (576, 64), (960, 64), (4304, 16)])
def test_a_short_last_group(columns, size, rng):
    """Of 128: scales are stored for what divides both, and counted."""
    rows, groups = 32, -(-columns // 128)
    integers, scales, zeros = draw(rng, 4, rows, columns, groups)
    zeros %= 16
    dense = groups_of(scales, columns, 128) * (integers - groups_of(zeros, columns, 128))
    weight = from_uniform(integers, scales, zeros, bits=4, group_size=128)
    check_products(weight, dense, rng, added=groups_of(abs(scales), columns, 128) * 32)
    assert weight.spec.groups == columns // size
    assert weight.bits_per_weight == 4 + 32 / size + 16 * 512 / weight.core.codes.size / 2

    packed = words_of(integers, 4).T, words_of(zeros.T, 4), scales.T
    g_idx = np.arange(columns, dtype=np.int32) // 128
    assert from_gptq(*packed, bits=4, version=2, group_size=128) == weight
    assert from_gptq(*packed, g_idx, bits=4, version=2) == weight
    assert from_gptq(*packed, g_idx, bits=4, version=2, group_size=128) == weight
    assert from_awq(pack_awq(integers.T), pack_awq(zeros.T), scales.T, group_size=128) == weight
    for read in (
        lambda: from_uniform(integers, scales, zeros, bits=4),
        lambda: from_gptq(*packed, bits=4, version=2),
        lambda: from_awq(pack_awq(integers.T), pack_awq(zeros.T), scales.T),
    ):
        with pytest.raises(CheckpointError, match=f"scales: {groups} groups of {columns} columns .* give group_size="):
            read()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "columns", "group"), [(4, 512, 128), (4, 960, 128), (2, 320, 128), (3, 96, 32)])
def test_columns_in_the_order_of_activations(bits, columns, group, symmetric, rng):
    """Groups are of columns that a permutation puts together, the last of them short."""
    rows, groups = 32, -(-columns // group)
    integers, scales, zeros = draw(rng, bits, rows, columns, groups)
    zeros = zeros * 0 + 2 if symmetric else zeros % (1 << bits)
    g_idx = np.empty(columns, np.int32)
    g_idx[rng.permutation(columns)] = np.arange(columns) // group
    dense = np.asarray(scales, np.float64)[:, g_idx] * (integers - zeros[:, g_idx])
    layer = words_of(integers, bits).T, words_of(zeros.T, bits), scales.T
    weight = from_gptq(*layer, g_idx, bits=bits, version=2)
    assert weight == from_gptq(*layer, g_idx.astype(np.int64), bits=bits, version=2, group_size=group)
    assert weight == from_uniform(integers, scales, zeros, bits=bits, g_idx=g_idx)
    check_products(weight, dense, rng, added=abs(np.asarray(scales, np.float64)[:, g_idx]) * (2 << bits))
    x = rng.standard_normal((3, columns))
    wanted = x @ dense.T
    for product in (codegemm.matmul(x, weight.T, kernel="reference"), x.astype(np.float32) @ weight.T):
        assert np.linalg.norm(product - wanted) <= 2e-4 * np.linalg.norm(wanted)
    with pytest.raises(CheckpointError, match=f"group_size=64: makes|group_size=64: the groups of g_idx have {group}"):
        from_gptq(*layer, g_idx, bits=bits, version=2, group_size=64)


def test_sorted_columns_need_no_order(rng):
    integers, scales, zeros = draw(rng, 4, 8, 256, 2)
    layer = words_of(integers, 4).T, words_of(zeros.T % 16, 4), scales.T
    g_idx = np.repeat(np.arange(2, dtype=np.int32), 128)
    assert from_gptq(*layer, g_idx, bits=4, version=2) == from_gptq(*layer, bits=4, version=2)
    g_idx[[0, 1, 255]] = 1, 1, 0
    with pytest.raises(CheckpointError, match="g_idx: groups of 127, 129 columns, must be of one size"):
        from_gptq(*layer, g_idx, bits=4, version=2)


def test_group_sizes_that_contradict(rng):
    integers, scales, zeros = draw(rng, 4, 8, 960, 8)
    packed = words_of(integers, 4).T, words_of(zeros.T % 16, 4), scales.T
    for size, message in ((64, "makes 15 groups of 960 columns"), (-1, "makes 1 groups"), (0, "must be a positive"),
                          (128.0, "must be a positive"), (-2, "must be a positive")):  # fmt: skip
        with pytest.raises(CheckpointError, match=rf"group_size={size}: {message}"):
            from_uniform(integers, scales, zeros, bits=4, group_size=size)
    g_idx = np.arange(960, dtype=np.int32) // 128
    with pytest.raises(CheckpointError, match="group_size=120: the groups of g_idx have 128 columns"):
        from_gptq(*packed, g_idx, bits=4, group_size=120)
    with pytest.raises(CheckpointError, match="g_idx: groups of 104, 120, 136 columns, must be of one size"):
        from_gptq(*packed, np.repeat(np.arange(8, dtype=np.int32), [136, *[120] * 6, 104]), bits=4)


def test_one_group_of_a_whole_row(rng):
    integers, scales, zeros = draw(rng, 4, 8, 960, 1)
    weight = from_uniform(integers, scales, zeros, bits=4)
    assert from_uniform(integers, scales, zeros, bits=4, group_size=-1) == weight
    assert from_uniform(integers, scales, zeros, bits=4, group_size=1024) == weight
    assert np.array_equal(weight.dequantize(np.float64), groups_of(scales, 960) * (integers - groups_of(zeros, 960)))


@pytest.mark.parametrize("exponent", [-35, -24, 20])
def test_scales_beyond_float16(exponent, rng):
    """A power of two goes to the integers and zero points."""
    integers, scales, zeros = draw(rng, 4, 8, 64, 2)
    size = np.ldexp(rng.choice([1.0, 1.25, -1.5], scales.shape), exponent).astype(arrays.bfloat16())
    for points in (zeros, 7.5):
        dense = groups_of(size, 64) * (integers - groups_of(np.broadcast_to(points, size.shape), 64))
        if exponent == -35:
            with pytest.raises(
                CheckpointError, match=r"scales: .* is not exactly a finite float16, and no power of two"
            ):
                from_uniform(integers, size, points, bits=4)
            continue
        weight = from_uniform(integers, size, points, bits=4)
        assert np.array_equal(weight.dequantize(np.float64), dense)
        check_products(weight, dense, rng, added=abs(groups_of(size, 64)) * 32)


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


def pack_awq(values):
    """Integers [n, M] in words [n, M/8]."""
    words = np.zeros((len(values), values.shape[1] // 8), np.uint32)
    for i, place in enumerate(AWQ_ORDER):
        words |= values[:, place::8].astype(np.uint32) << np.uint32(4 * i)
    return words.view(np.int32)


@pytest.mark.parametrize("groups", [1, 3])
def test_awq(groups, rng):
    rows, columns = 24, 48
    integers, scales, zeros = draw(rng, 4, rows, columns, groups)
    zeros %= 16
    weight = from_awq(pack_awq(integers.T), pack_awq(zeros.T), scales.T)
    dense = groups_of(scales, columns) * (integers - groups_of(zeros, columns))
    assert np.array_equal(weight.dequantize(np.float64), dense)


@pytest.mark.parametrize("with_offsets", [False, True])
@pytest.mark.parametrize(("count", "rows", "columns", "groups"), [(3, 33, 96, 4), (1, 5, 22, 2), (2, 7, 64, 1)])
def test_binary_planes(count, rows, columns, groups, with_offsets, rng):
    planes = rng.choice(np.array([-1, 1], np.int8), (count, rows, columns))
    # of few bits, so that sums in any order are exact
    alphas = (rng.integers(-99, 99, (rows, groups, count)) / 64).astype(np.float16)
    offsets = rng.integers(-9, 9, (rows, groups)).astype(np.float16) if with_offsets else None
    weight = from_binary(planes, alphas, offsets, group_size=columns // groups)
    dense = sum(groups_of(alphas[..., i], columns) * planes[i] for i in range(count))
    if with_offsets:
        dense = dense + groups_of(offsets, columns)
    assert weight == from_binary(planes > 0, alphas.astype(np.float32), offsets, group_size=columns // groups)
    assert weight.spec.name.startswith(f"q{count}")
    check_products(weight, dense, rng)


@pytest.mark.parametrize(("planes", "rows", "columns", "groups"), [(1, 3, 32, 1), (2, 5, 96, 3), (4, 2, 160, 40)])
@pytest.mark.parametrize("biased", [False, True])
def test_lutgemms_layout(planes, rows, columns, groups, biased, rng):
    """Sign by sign as the layout's definition says."""
    words = rng.integers(0, 1 << 32, (columns // 32, planes, rows), np.uint32)
    alpha = (rng.integers(-99, 99, (groups, planes, rows)) / 64).astype(np.float16)
    bias = rng.integers(-9, 9, (groups, rows)).astype(np.float16) if biased else None
    dense = np.zeros((rows, columns))
    for r, k in np.ndindex(rows, columns):
        group = k // (columns // groups)
        signs = [2 * (int(words[k // 32, i, r]) >> k % 32 & 1) - 1 for i in range(planes)]
        dense[r, k] = sum(float(alpha[group, i, r]) * sign for i, sign in enumerate(signs))
        if biased:
            dense[r, k] += bias[group, r]
    weight = from_lutgemm(words, alpha, bias)
    assert weight == from_lutgemm(words.view(np.int32), alpha, bias)
    assert weight.spec.name.startswith(f"q{planes}")
    check_products(weight, dense, rng)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bW": np.zeros((2, 2, 5), np.int64)}, "bW: dtype int64, must be uint32 or int32"),
        ({"bW": np.zeros((2, 0, 5), np.uint32)}, r"alpha: shape \(2, 2, 5\), must be \[n, 0, 5\]"),
        ({"alpha": np.ones((2, 2, 5))}, "alpha: dtype float64, must be float16"),
        ({"alpha": np.ones((2, 3, 5), np.float16)}, r"alpha: shape \(2, 3, 5\), must be \[n, 2, 5\]"),
        ({"alpha": np.ones((3, 2, 5), np.float16)}, "alpha: 3 groups, must divide the 64 columns"),
        ({"alpha": np.ones((0, 2, 5), np.float16)}, "alpha: 0 groups, must divide"),
        ({"alpha": np.full((2, 2, 5), np.inf, np.float16)}, "alphas: inf at"),
        ({"q_bias": np.ones((1, 5), np.float16)}, r"q_bias: shape \(1, 5\), must be \(2, 5\)"),
    ],
)
def test_what_is_wrong_with_lutgemms_is_named(change, message):
    fine = {"bW": np.zeros((2, 2, 5), np.uint32), "alpha": np.ones((2, 2, 5), np.float16)}
    from_lutgemm(**fine)
    with pytest.raises(CheckpointError, match=message):
        from_lutgemm(**fine | change)


@pytest.mark.parametrize("count", [1, 2])
def test_binary_planes_with_a_short_last_group(count, rng):
    planes = rng.choice(np.array([-1, 1], np.int8), (count, 5, 960))
    alphas = (rng.integers(-99, 99, (5, 8, count)) / 64).astype(np.float16)
    offsets = rng.integers(-9, 9, (5, 8)).astype(np.float16)
    dense = sum(groups_of(alphas[..., i], 960, 128) * planes[i] for i in range(count))
    assert np.array_equal(from_binary(planes, alphas, group_size=128).dequantize(np.float64), dense)
    weight = from_binary(planes, alphas, offsets, group_size=128)
    assert np.array_equal(weight.dequantize(np.float64), dense + groups_of(offsets, 960, 128))
    with pytest.raises(CheckpointError, match=r"8 groups of 960 columns .* give group_size="):
        from_binary(planes, alphas, offsets)


def test_alphas_beyond_float16(rng):
    planes = rng.choice(np.array([-1, 1], np.int8), (2, 5, 64))
    for exponent in (-20, 20):
        alphas = np.ldexp(rng.uniform(1, 2, (5, 2, 2)), exponent).astype(arrays.bfloat16())
        dense = sum(groups_of(alphas[..., i], 64) * planes[i] for i in range(2))
        assert np.array_equal(from_binary(planes, alphas).dequantize(np.float64), dense)


def test_scales_in_bfloat16(rng):
    integers, scales, zeros = draw(rng, 4, 8, 64, 4)
    narrow = scales.astype(arrays.bfloat16())
    weight = from_uniform(integers, narrow, zeros, bits=4)
    dense = groups_of(narrow, 64) * (integers - groups_of(zeros, 64))
    assert np.array_equal(weight.dequantize(np.float64), dense)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 5}, "bits=5: must be one of 2, 3, 4"),
        ({"integers": np.full((4, 32), 16)}, "integers: 16 to 16, must be from 0 to 15"),
        ({"integers": np.full((4, 32), -1)}, "integers: -1 to -1"),
        ({"integers": np.ones((4, 32))}, "integers: dtype float64"),
        (
            {"scales": np.ones((3, 2), np.float16)},
            r"scales: shape \(3, 2\), must be \[4, n\] for integers \(4, 32\)",
        ),
        ({"scales": np.full((4, 2), 0.1)}, r"scales: 0.1 at \[0, 0\] is not exactly a finite float16"),
        ({"scales": np.full((4, 2), 1e9)}, "is not exactly a finite float16"),
        ({"scales": np.full((4, 2), np.nan)}, "is not exactly a finite float16"),
        ({"scales": np.ones((4, 0))}, "there are no groups"),
        ({"scales": np.ones((4, 3))}, "3 groups of 32 columns don't say"),
        ({"scales": np.ones((4, 4))}, "4 groups of 32 columns don't say"),
        ({"zeros": np.ones((4, 3), int)}, r"zeros: shape \(4, 3\), must be \(4, 2\)"),
        ({"zeros": np.full((4, 2), np.inf)}, "zeros: inf, must be finite"),
        ({"zeros": np.linspace(0.1, 0.7, 8).reshape(4, 2)}, "zeros: -0.1 at"),
    ],
)
def test_bad_integers_are_refused(change, message):
    given = {"integers": np.ones((4, 32), int), "scales": np.ones((4, 2), np.float16), "zeros": 1, "bits": 4} | change
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
        ({"g_idx": np.arange(32, dtype=np.int32) // 15}, "g_idx: 0 to 2, must be from 0 to 1"),
        ({"g_idx": np.zeros(32, np.int32)}, "g_idx: groups of 0, 32 columns"),
        ({"scales": np.ones((3, 8), np.float16), "qzeros": np.zeros((3, 1), np.int32)}, "3 groups of 32 columns"),
        ({"writer": "me"}, "writer='me': must be one of None, 'gptqmodel'"),
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
    planes = np.ones((2, 3, 32))
    with pytest.raises(CheckpointError, match=r"alphas: shape \(3, 2, 3\), must be \[3, n, 2\]"):
        from_binary(planes, np.ones((3, 2, 3), np.float16))
    with pytest.raises(CheckpointError, match=r"planes: 0\.0, must be 1 or -1"):
        from_binary(0 * planes, np.ones((3, 2, 2), np.float16))
    with pytest.raises(CheckpointError, match=r"offsets: shape \(3, 1\)"):
        from_binary(planes, np.ones((3, 2, 2), np.float16), np.ones((3, 1), np.float16))
    assert issubclass(CheckpointError, ValueError)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint64])
def test_bits_of_any_integer_type(kind, rng):
    """NumPy computes with them in their own type, where they are not made plain."""
    integers, scales, zeros = draw(rng, 4, 16, 64, 2)
    assert from_uniform(integers, scales, zeros, bits=kind(4)) == from_uniform(integers, scales, zeros, bits=4)
    words = words_of(integers.T.reshape(64, 16).T, 4).T.copy(), words_of(zeros.T % 16, 4), scales.T.copy()
    layer = dict(zip(("qweight", "qzeros", "scales"), words))
    assert from_gptq(**layer, bits=kind(4), version=2) == from_gptq(**layer, bits=4, version=2)
    for wrong in (4.0, "4", None, True):
        with pytest.raises(CheckpointError, match="bits="):
            from_uniform(integers, scales, zeros, bits=wrong)


@pytest.mark.parametrize("zeros", [None, "8", 10**400, np.nan])
def test_a_zero_point_that_is_no_number(zeros, rng):
    integers, scales, _ = draw(rng, 4, 16, 64, 2)
    with pytest.raises(CheckpointError, match=r"zeros=.*: must be a finite number"):
        from_uniform(integers, scales, zeros, bits=4)
