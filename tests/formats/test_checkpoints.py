"""Other projects' layouts, against arrays that their own code made."""

import numpy as np
import pytest

from codegemm import CheckpointError, arrays
from codegemm.checkpoints import from_aqlm, from_codegemm, from_quip


@pytest.mark.parametrize("name", ["m2b8", "m1b16", "m1b8g8", "m1b12", "m8b8og", "m1b16g16"])
def test_aqlm(name, golden):
    data = golden("aqlm")
    weight = from_aqlm(*(data[f"{name}_{part}"] for part in ("codes", "codebooks", "scales")))
    assert np.abs(weight.dequantize(np.float64) - data[f"{name}_W"]).max() <= 1e-12
    product = data[f"{name}_x"].astype(np.float64) @ weight.dequantize(np.float64).T
    assert np.abs(product - data[f"{name}_y"]).max() <= 1e-12


def test_aqlm_codes_of_several_rows_are_refused_with_the_reason(golden):
    data = golden("aqlm")
    with pytest.raises(CheckpointError, match="out_group_size 4, must be 1: the kernels take codes of one row"):
        from_aqlm(data["og4_codes"], data["og4_codebooks"], data["og4_scales"])


@pytest.mark.parametrize("b", [5, 8, 12, 16])
def test_codes_in_signed_types(b, rng):
    """Wrapped or not, and refused beyond."""
    codes = rng.integers(0, 1 << b, (3, 10, 1))
    codes[0, :2, 0] = 0, (1 << b) - 1
    codebooks = rng.standard_normal((1, 1 << b, 1, 4)).astype(np.float16)
    scales = np.ones((3, 1, 1, 1), np.float16)
    dense = codebooks[0, codes[..., 0], 0].astype(np.float64).reshape(3, 40)
    wrapped = np.where(codes >> b - 1, codes - (1 << b), codes).astype(np.int16)
    for stored in (wrapped, codes.astype(np.uint16)):
        assert np.array_equal(from_aqlm(stored, codebooks, scales).dequantize(np.float64), dense)
    if b < 16:
        for wrong in (1 << b, -(1 << b - 1) - 1):
            stored = codes.astype(np.int16)
            stored[2, 3, 0] = wrong
            low, high = min(wrong, 0), max(wrong, (1 << b) - 1)
            with pytest.raises(CheckpointError, match=f"codes: {low} to {high}, must be from -{1 << b - 1} to"):
                from_aqlm(stored, codebooks, scales)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("scale", "centroid"), [(1e-6, 1), (3e-8, 1), (1e-9, 1e4), (1, 1e-6), (1e5, 1), (1e-7, 1e6), (1e9, 1e-9), (1, 1)]
)
def test_numbers_beyond_float16(scale, centroid, dtype, rng):
    """Are as near as float16's normal numbers are, those of each row."""
    dtype = arrays.bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
    codes = rng.integers(0, 256, (16, 8, 2)).astype(np.uint8)
    codebooks = (centroid * rng.standard_normal((2, 256, 8))).astype(dtype)
    scales = (scale * rng.uniform(1, 200, (16, 1))).astype(dtype)
    plain = codebooks.astype(np.float64)
    dense = scales.astype(np.float64) * (plain[0][codes[..., 0]] + plain[1][codes[..., 1]]).reshape(16, -1)
    words = np.ascontiguousarray(codes.reshape(16, 2, 4, 2).transpose(3, 1, 0, 2)).view(np.int32)[..., 0]
    for weight in (
        from_aqlm(codes, codebooks[:, :, None], scales[:, :, None, None]),
        from_codegemm(words, codebooks, scales.T),
    ):
        error = np.linalg.norm(weight.dequantize(np.float64) - dense, axis=1)
        assert (error <= 2.0**-10 * np.linalg.norm(dense, axis=1)).all()
        if (scale, centroid) == (1, 1) and dtype.name == "bfloat16":
            assert np.array_equal(weight.scales, scales)  # nothing moves that need not


def test_numbers_beyond_float16_and_each_other(rng):
    codes, codebooks = np.zeros((2, 8, 1), np.uint8), rng.standard_normal((1, 256, 1, 8)).astype(np.float32)
    scales = np.array([1, 1e-12], np.float32).reshape(2, 1, 1, 1)
    with pytest.raises(
        CheckpointError, match=r"scales: 1e-12 at \[1, 0\] is not near a normal float16, and no power of two"
    ):
        from_aqlm(codes, codebooks, scales)
    codebooks[0, 7] = 1e-12  # a centroid that float16 doesn't hold beside the others
    with pytest.raises(CheckpointError, match=r"codebooks: 1e-12 at \[0, 7, 0\] is not near a normal float16"):
        from_aqlm(codes, codebooks, np.ones_like(scales))
    codebooks[0, 7] = 0
    codebooks[0, 8, 1:] = 1e-12  # its first is so much larger that they don't matter
    weight = from_aqlm(
        codes + np.uint8(7) + np.arange(2, dtype=np.uint8)[:, None, None], codebooks, np.ones_like(scales)
    )
    assert np.allclose(weight.dequantize()[:, :8], codebooks[0, 7:9, 0], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("size", [128, -1])
def test_published_codegemm_with_a_short_last_group(size, rng):
    codes = rng.integers(0, 256, (5, 240, 1)).astype(np.uint8)
    books = rng.standard_normal((1, 256, 4)).astype(np.float16)
    scales = rng.standard_normal((5, 1 if size == -1 else 8)).astype(np.float16)
    words = np.ascontiguousarray(codes.reshape(5, 60, 4, 1).transpose(3, 1, 0, 2)).view(np.int32)[..., 0]
    dense = books[0][codes[..., 0]].reshape(5, 960).astype(np.float64)
    dense *= scales[:, np.arange(960) // (960 if size == -1 else size)]
    assert np.array_equal(from_codegemm(words, books, scales.T, group_size=size).dequantize(np.float64), dense)
    if size != -1:
        with pytest.raises(CheckpointError, match="8 groups of 960 columns"):
            from_codegemm(words, books, scales.T)


@pytest.mark.parametrize("name", ["m1v4g128", "m2v8g128", "m1v4g32"])
def test_published_codegemm(name, golden):
    data = golden("codegemm_official")
    weight = from_codegemm(*(data[f"{name}_{part}"] for part in ("codes", "codebooks", "scales")))
    assert str(weight.config) == name
    assert np.array_equal(weight.codes, data[f"{name}_codes_raw"])
    assert np.abs(weight.dequantize(np.float64) - data[f"{name}_W"]).max() <= 1e-12
    product = data[f"{name}_x"].astype(np.float64) @ weight.dequantize(np.float64).T
    assert np.abs(product - data[f"{name}_y"]).max() <= 1e-12


def test_quip_scales_are_folded(golden, rng):
    data = golden("quip_e8p")
    qidxs, su, sv = (data[f"case0_{name}"] for name in ("qidxs", "SU", "SV"))
    plain = from_quip(qidxs, su, sv).dequantize(np.float64)
    divisor = rng.uniform(0.5, 2, len(su)).astype(np.float32)
    scaled = from_quip(qidxs, su, sv, wscale=0.75, scale_wh=divisor).dequantize(np.float64)
    assert np.allclose(scaled, 0.75 * plain / divisor, rtol=1e-6, atol=1e-9)


def test_quip_parts_have_scales(golden):
    data = golden("quip_e8p")
    qidxs, su, sv = (data[f"case0_{name}"] for name in ("qidxs", "SU", "SV"))
    rows = len(sv)
    sizes, factors = [rows // 2, rows // 4, rows // 4], np.array([0.5, 3, 0.7], np.float32)
    plain = from_quip(qidxs, su, sv).dequantize(np.float64)
    fused = from_quip(qidxs, su, sv, wscale=0.75, fuse_scales=factors, fuse_sizes=sizes).dequantize(np.float64)
    assert np.allclose(fused, 0.75 * np.repeat(factors, sizes)[:, None] * plain, rtol=1e-6, atol=1e-9)
    for scales, parts, message in (
        (factors, None, "fuse_scales and fuse_sizes: one says nothing without the other"),
        (None, sizes, "one says nothing without the other"),
        (factors, sizes[:2], "must be 3 positive numbers"),
        (factors, [rows, 1, -1], f"fuse_sizes: .*, must be 3 positive numbers, as fuse_scales, that sum to {rows}"),
        (factors, [1, 1, 1], f"that sum to {rows}"),
        (factors, [1.5, 1, 1], "fuse_sizes: dtype float64"),
        (factors * np.inf, sizes, "fuse_scales: inf at 0"),
    ):
        with pytest.raises(CheckpointError, match=message):
            from_quip(qidxs, su, sv, fuse_scales=scales, fuse_sizes=parts)


def test_quip_scales_beyond_float32():
    qidxs, su, sv = np.zeros((16, 2), np.int64), np.ones(64, np.float16), np.full(16, 1e-3, np.float16)
    with pytest.raises(CheckpointError, match=r"SV: 1.*e-53 at 0 is not near a finite, normal float32"):
        from_quip(qidxs, su, sv, wscale=1e-50)
    with pytest.raises(CheckpointError, match="SV: 1e-50 at 3"):
        from_quip(qidxs, su, np.array([1, 1, 1, *[1e-50] * 13]))
    with pytest.raises(CheckpointError, match=r"SU: .* at 2 is not near"):
        from_quip(qidxs, np.where(np.arange(64) == 2, 1e30, 1.0), sv, scale_wh=np.full(64, 1e-20))
    for bad in (np.inf, np.nan):
        with pytest.raises(CheckpointError, match=f"scale_wh: {bad} at .5., must be finite"):
            from_quip(qidxs, su, sv, scale_wh=np.where(np.arange(64) == 5, bad, 1).astype(np.float16))


def test_quip_residual_scale(golden):
    data = golden("quip_rvq")
    ones = np.ones(256, np.float16), np.ones(64, np.float16)
    default = from_quip(data["b4_qidxs"], *ones, "E8P12RVQ4B")
    assert from_quip(data["b4_qidxs"], *ones, "E8P12RVQ4B", resid_scale=-1) == default
    halved = from_quip(data["b4_qidxs"], *ones, "E8P12RVQ4B", resid_scale=2 * 3.45)
    first = from_quip(data["b4_qidxs"][:, :8].copy(), *ones).lattice()
    assert np.allclose(halved.lattice() - first, (default.lattice() - first) / 2)
    assert halved != default


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: from_aqlm(a["m2b8_codes"].astype(np.int64), a["m2b8_codebooks"], a["m2b8_scales"]), "codes: dtype"),
        (lambda a: from_aqlm(a["m2b8_codes"][0], a["m2b8_codebooks"], a["m2b8_scales"]), "codes: shape"),
        (lambda a: from_aqlm(a["m2b8_codes"], a["m2b8_codebooks"][:, :100], a["m2b8_scales"]), "100 centroids"),
        (lambda a: from_aqlm(a["m2b8_codes"], a["m2b8_codebooks"], a["m2b8_scales"][:3]), "scales: shape"),
        (lambda a: from_aqlm(a["m2b8_codes"], a["m1b16_codebooks"], a["m2b8_scales"]), "too narrow for 16-bit"),
        (
            lambda a: from_aqlm(a["m2b8_codes"], a["m2b8_codebooks"].astype(np.float32) * 1e19, a["m2b8_scales"]),
            r"codebooks: .*e\+1\d at \[0, 0, 0\] is not near a normal float16, and no power of two",
        ),
        (lambda a: from_codegemm(np.zeros((1, 4, 8), np.int16), 0, 0), "codes: dtype int16, must be int32"),
        (
            lambda a: from_codegemm(
                np.zeros((1, 6, 8), np.int32), np.ones((1, 256, 8), "f2"), np.ones((16, 8), "f2"), group_size=12
            ),
            "scales: groups of 12 columns, must be of a multiple of v=8",
        ),
        (lambda a: from_quip(np.zeros((16, 2), np.int64), np.ones(64), np.ones(16), "E9"), "codebook 'E9'"),
        (lambda a: from_quip(np.zeros((16, 3), np.int64), np.ones(64), np.ones(16)), "qidxs: shape"),
        (
            lambda a: from_quip(np.zeros((16, 2), np.int64), np.ones(64), np.ones(16), scale_wh=np.zeros(64)),
            "scale_wh: is 0 at 0",
        ),
        (lambda a: from_quip(np.zeros((16, 2), np.int64), np.ones(64), np.ones(16), wscale=np.inf), "wscale=inf"),
        (lambda a: from_quip(np.zeros((16, 2), np.int64), np.ones(64), np.ones(16), wscale=None), "wscale=None"),
        (lambda a: from_quip(np.zeros((16, 2), np.int64), np.ones(64), np.ones(16), wscale="1.5"), "wscale='1.5'"),
        (lambda a: from_quip(np.zeros((16, 2), np.int64), np.ones(64), np.ones(16), ["E8P12"]), "codebook .*E8P12"),
        (
            lambda a: from_codegemm(
                np.zeros((2, 4, 8), np.int32), np.ones((2, 256, 0), np.float16), np.ones((1, 8), "f2")
            ),
            r"codebooks: shape \(2, 256, 0\), must not be empty",
        ),
        (
            lambda a: from_codegemm(
                np.zeros((2, 0, 8), np.int32), np.ones((2, 256, 8), np.float16), np.ones((1, 8), "f2")
            ),
            r"codes: shape \(2, 0, 8\), must not be empty",
        ),
        (
            lambda a: from_quip(
                np.zeros((16, 4), np.int64), np.ones(64), np.ones(16), "E8P12RVQ4B", resid_scale=np.nan
            ),
            "resid_scale=nan: must be",
        ),
    ],
)
def test_bad_arrays_are_named(call, message, golden):
    with pytest.raises(CheckpointError, match=message):
        call(golden("aqlm"))
