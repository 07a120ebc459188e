"""Other projects' layouts, against arrays that their own code made."""

import numpy as np
import pytest

from codegemm import CheckpointError
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
            lambda a: from_aqlm(a["m2b8_codes"], a["m2b8_codebooks"].astype(np.float32) * 1e9, a["m2b8_scales"]),
            "codebooks: has a value that is not a finite float16",
        ),
        (lambda a: from_codegemm(np.zeros((1, 4, 8), np.int16), 0, 0), "codes: dtype int16, must be int32"),
        (lambda a: from_quip(np.zeros((16, 2), np.int64), np.ones(64), np.ones(16), "E9"), "codebook 'E9'"),
        (lambda a: from_quip(np.zeros((16, 3), np.int64), np.ones(64), np.ones(16)), "qidxs: shape"),
        (
            lambda a: from_quip(np.zeros((16, 2), np.int64), np.ones(64), np.ones(16), scale_wh=np.zeros(64)),
            "scale_wh: is 0 at 0",
        ),
        (lambda a: from_quip(np.zeros((16, 2), np.int64), np.ones(64), np.ones(16), wscale=np.inf), "wscale=inf"),
    ],
)
def test_bad_arrays_are_named(call, message, golden):
    with pytest.raises(CheckpointError, match=message):
        call(golden("aqlm"))
