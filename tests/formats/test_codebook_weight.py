"""CodebookWeight and concat: validation, views, equality, dequantisation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import codegemm
from codegemm import CodebookWeight
from codegemm.formats import bits


def arrays(rows=6, vectors=8, m=2, b=4, v=4, groups=2):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << b, (rows, vectors, m)).astype(bits.code_dtype(b))
    codebooks = rng.standard_normal((m, 1 << b, v)).astype(np.float16)
    return codes, codebooks, rng.uniform(0.5, 2, (rows, groups)).astype(np.float16)


def test_dequantize_is_the_definition():
    codes, codebooks, scales = arrays()
    weight = CodebookWeight(codes, codebooks, scales)
    m, v, g = 2, 4, 16
    expected = np.zeros(weight.shape)
    for r in range(6):
        for j in range(8):
            total = sum(codebooks[c, codes[r, j, c]].astype(np.float64) for c in range(m))
            expected[r, j * v : (j + 1) * v] = float(scales[r, j * v // g]) * total
    assert np.array_equal(weight.dequantize(np.float64), expected)
    assert weight.dequantize().dtype == np.float32
    assert np.allclose(weight.dequantize(np.float16), expected, rtol=2e-3, atol=1e-3)


def test_what_a_weight_tells():
    weight = CodebookWeight(*arrays())
    assert weight.config == codegemm.CodebookConfig(v=4, m=2, b=4, g=16)
    assert weight.shape == (6, 32)
    assert weight.T.shape == (32, 6)
    assert weight.T.T is weight
    assert weight.dtype == np.float16
    assert weight.device == "cpu"
    assert weight.nbytes == (16 * 2 * 16 * 4 + 4 * 2 * 6 * 8 + 16 * 6 * 2) // 8
    assert weight.bits_per_weight == weight.config.bits_per_weight(6, 32)
    assert repr(weight) == "CodebookWeight(m2v4b4g16, shape=(6, 32), 13.667 bits/weight, cpu)"
    assert weight.to("cpu") is weight


def test_arrays_are_read_only_and_apart_from_the_callers():
    codes, codebooks, scales = arrays()
    weight = CodebookWeight(codes, codebooks, scales)
    codes[:] = 0
    assert weight.codes.any()
    with pytest.raises(ValueError, match="read-only"):
        weight.scales[0, 0] = 1
    frozen = CodebookWeight(weight.codes, weight.codebooks, weight.scales)
    assert frozen.codes is weight.codes
    # A read-only view of memory that somebody can still write to is copied as well.
    view = codes.view()
    view.flags.writeable = False
    assert not np.shares_memory(CodebookWeight(view, codebooks, scales).codes, codes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, b, s: (c.astype(np.uint16), b, s), r"codes: dtype uint16, must be uint8 for b=4"),
        (lambda c, b, s: (c.astype(np.int64), b, s), r"codes: dtype int64, must be uint8"),
        (lambda c, b, s: (c[..., :1], b, s), r"codes: shape \(6, 8, 1\).*m=2"),
        (lambda c, b, s: (c[0], b, s), r"codes: shape \(8, 2\)"),
        (lambda c, b, s: (c[:0], b, s), r"no axis may be empty"),
        (lambda c, b, s: (c + np.uint8(16), b, s), r"codes: largest is \d+, must be below 2\*\*b = 16"),
        (lambda c, b, s: (c, b[:, :15], s), r"codebooks: shape \(2, 15, 4\)"),
        (lambda c, b, s: (c, b.astype(np.float32), s), r"codebooks: dtype float32, must be float16"),
        (lambda c, b, s: (c, np.where(b > 2, np.float16(np.nan), b), s), r"codebooks: nan at \[\d.*must be finite"),
        (lambda c, b, s: (c, b, s[:5]), r"scales: shape \(5, 2\)"),
        (lambda c, b, s: (c, b, np.repeat(s, 3, 1)[:, :3]), r"scales: shape \(6, 3\).*divisor of the 8"),
        (lambda c, b, s: (c, b, s * np.float16(np.inf)), r"scales: inf at \[0, 0\], must be finite"),
        (lambda c, b, s: (c, b, s[:, 0]), r"scales: shape \(6,\)"),
        (lambda c, b, s: (c, b[None], s), r"part_rows"),
    ],
)
def test_bad_arrays_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        CodebookWeight(*change(*arrays()))


def test_one_other_number_makes_another_weight():
    codes, codebooks, scales = arrays()
    weight = CodebookWeight(codes, codebooks, scales)
    scales[3, 1] *= 2
    assert weight != CodebookWeight(codes, codebooks, scales)
    assert weight != "weight"
    with pytest.raises(TypeError):
        hash(weight)


@given(st.data())
def test_row_slices(data):
    first = CodebookWeight(*arrays())
    weight = codegemm.concat([first, first[1:4], first]) if data.draw(st.booleans()) else first
    start = data.draw(st.integers(0, weight.shape[0] - 1))
    stop = data.draw(st.integers(start + 1, weight.shape[0]))
    assert np.array_equal(weight[start:stop].dequantize(), weight.dequantize()[start:stop])


def test_slices_that_make_no_sense():
    weight = CodebookWeight(*arrays())
    for rows in (slice(2, 2), slice(None, None, 2), slice(None, None, -1)):
        with pytest.raises(ValueError, match="row slice"):
            weight[rows]
    with pytest.raises(TypeError, match="row slices only"):
        weight[0]


def test_concat_keeps_each_parts_codebooks(make_weight):
    parts = [make_weight(rows, 64, "m2v4g32") for rows in (5, 1, 8)]
    joined = codegemm.concat(parts)
    assert joined.shape == (14, 64)
    assert joined.nbytes == sum(part.nbytes for part in parts)
    assert np.array_equal(joined.dequantize(), np.concatenate([part.dequantize() for part in parts]))
    again = codegemm.concat([joined, parts[0]])
    assert again.spec.part_rows == (5, 1, 8, 5)
    assert again[0:5] == parts[0]
    assert codegemm.concat(parts[:1]) is parts[0]


@pytest.mark.parametrize("terms", [1, 2])
def test_parts_of_signs_join_others(make_weight, terms):
    """Rows of them are planes of signs again, and join once more."""
    around = "" if terms == 1 else f"+terms{terms}"
    parts = [make_weight(rows, 64, config + around) for rows, config in ((5, "q1v4g16"), (8, "m1v4b4g16"))]
    joined = codegemm.concat(parts)
    assert np.array_equal(joined.dequantize(), np.concatenate([part.dequantize() for part in parts]))
    rows = [joined[:5], joined[5:]]
    assert [part.spec for part in rows] == [part.spec for part in parts]
    assert codegemm.concat(rows) == joined


def test_concat_refuses_what_does_not_share_x(make_weight):
    with pytest.raises(ValueError, match="in_features must be the same"):
        codegemm.concat([make_weight(4, 64, "m1v4"), make_weight(4, 32, "m1v4")])
    with pytest.raises(ValueError, match="config must be the same"):
        codegemm.concat([make_weight(4, 64, "m1v4"), make_weight(4, 64, "m1v8")])
    with pytest.raises(TypeError, match="E8PWeight"):
        codegemm.concat([make_weight(16, 64, "m1v4"), make_weight(16, 64, "e8p")])
    with pytest.raises(ValueError, match="at least one"):
        codegemm.concat([])


@given(st.integers(1, 16), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32))
def test_packing_is_least_significant_bit_first(b, rows, count, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << b, (rows, count)).astype(bits.code_dtype(b))
    packed = bits.pack(codes, b)
    assert packed.shape == (rows, bits.row_bytes(count, b))
    unpacked = bits.unpack(packed, count, b)
    assert unpacked.dtype == codes.dtype
    assert np.array_equal(unpacked, codes)
    assert packed.flags.c_contiguous
    assert unpacked.flags.c_contiguous
    for row, stored in zip(codes, packed, strict=True):
        number = sum(int(code) << b * i for i, code in enumerate(row))
        assert number == int.from_bytes(stored.tobytes(), "little")
    packed[:, -1] |= np.uint8(0xFF << (count * b - 1) % 8 + 1 & 0xFF)  # behind the last code
    assert np.array_equal(bits.unpack(packed, count, b), codes)
