"""QTIP's trellis: states, pairs, the packing and the product, against the original's own."""

import numpy as np
import pytest

from codegemm import CheckpointError, QtipWeight
from codegemm.checkpoints import from_qtip
from codegemm.formats import trellis

BITS = {"k2": 2, "k3": 3, "k4": 4, "k2had": 2}
PARAMS = {
    "decode_mode": "quantlut_sym", "L": 16, "K": 2, "V": 2, "tlut_bits": 9, "td_x": 16, "td_y": 16,
}  # fmt: skip


def layer(data, case):
    return [data[f"{case}_{name}"] for name in ("trellis", "tlut", "SU", "SV")]


@pytest.mark.parametrize(("case", "bits"), BITS.items())
def test_layers_of_the_original(case, bits, golden):
    data = golden("qtip")
    weight = from_qtip(*layer(data, case), quip_params=PARAMS | {"K": bits})
    assert weight == QtipWeight(*layer(data, case))
    assert weight.spec.name == ("qtip" if bits == 2 else f"qtip{bits}")
    words = trellis.unpack(weight.trellis, weight.shape)
    assert np.array_equal(words, data[f"{case}_packed"].view(np.uint16))
    assert np.array_equal(trellis.pack(words, weight.shape), weight.trellis)
    assert np.array_equal(weight.states()[:2], data[f"{case}_states0"])
    core = np.concatenate([block for _, block in weight.core_blocks(np.dtype(np.float64))])
    dense, expected, x, y = weight.dequantize(np.float64), *(data[f"{case}_{name}"] for name in ("W", "x", "y"))
    kept = slice(None, None, 16 if case == "k2had" else 1)
    assert np.abs(core[kept] - data[f"{case}_core"]).max() <= 1e-12
    assert np.abs(dense[kept] - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.abs(x.astype(np.float64) @ dense.T - y).max() <= 1e-6 * np.abs(y).max()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_states_are_windows_of_a_cycle(bits, rng):
    words = rng.integers(0, 1 << 16, (3, 16 * bits), np.uint16)
    for row, states in zip(words, trellis.states(words, bits)):
        text = "".join(f"{word:016b}" for word in row.tolist()) * 2
        assert states.tolist() == [int(text[2 * bits * i :][:16], 2) for i in range(128)]
    assert np.array_equal(trellis.words(trellis.states(words, bits), bits), words)


def test_pairs_of_states_by_their_definition(rng):
    table = rng.standard_normal((512, 2)).astype(np.float16)
    grid = trellis.grid(table, np.float64)
    for s in rng.integers(0, 1 << 16, 300).tolist():
        h = s * (s + 1) % (1 << 16)
        first, second = table[h >> 6 & 511].astype(float)
        assert grid[s].tolist() == [-first if h >> 15 else first, second]


def test_tiles_lie_as_operands_of_tensor_cores(rng):
    matrix = rng.standard_normal((64, 96))
    pairs = trellis.tile(matrix)
    for row, column in rng.integers(0, (64, 96), (300, 2)).tolist():
        step = ((row % 8 * 4 + column % 8 // 2) * 2 + column % 16 // 8) * 2 + row % 16 // 8
        assert pairs[row // 16 * 6 + column // 16, step, column % 2] == matrix[row, column]
    assert np.array_equal(trellis.untile(pairs, matrix.shape), matrix)


def arrays(rows=32, columns=64, bits=2):
    codes = np.random.default_rng(1).integers(-(1 << 15), 1 << 15, (rows * columns // 256, 16 * bits), np.int16)
    return codes, np.ones((512, 2), np.float16), np.ones(columns, np.float16), np.ones(rows, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t, u, v: (c.astype(np.int32), t, u, v), "trellis: dtype int32, must be int16"),
        (
            lambda c, t, u, v: (c[:3], t, u, v),
            r"trellis: shape \(3, 32\), must be one of \(8, 32\) \(2 bit\), \(8, 48\)",
        ),
        (lambda c, t, u, v: (c, t[:9], u, v), r"tlut: shape \(9, 2\), must be \(512, 2\)"),
        (lambda c, t, u, v: (c, t.astype(np.float32), u, v), "tlut: dtype float32, must be float16"),
        (lambda c, t, u, v: (c, t * np.float16(np.inf), u, v), r"tlut: inf at \[0, 0\], must be finite"),
        (lambda c, t, u, v: (c, t, u[:50], v), "in_features=50: QTIP needs a multiple of 32"),
        (lambda c, t, u, v: (c, t, u, v[:16]), "out_features=16: QTIP needs a multiple of 32"),
        (lambda c, t, u, v: (c, t, u, v * np.float32(np.nan)), r"SV: nan at \[0\], must be finite"),
        (lambda c, t, u, v: (c, t, u[None], v), "SU: shape"),
        (lambda c, t, u, v: (c, t, np.ones(32 * 11, np.float16), v), "length 352: must be a power of two times"),
    ],
)
def test_bad_arrays_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        QtipWeight(*change(*arrays()))


def test_readers_name_bad_arrays_too():
    codes, table, su, sv = arrays()
    for changed, message in (
        ((codes[:3], table, su, sv), r"trellis: shape \(3, 32\), must be one of"),
        ((codes, table.astype(np.float32), su, sv), "tlut: dtype float32, must be float16"),
        ((codes, table, su, sv * np.float32(np.inf)), "SV: inf at 0 is not near a finite, normal float32"),
    ):
        with pytest.raises(CheckpointError, match=message):
            from_qtip(*changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rcp": 1}, "rcp=1: must be 0: Hadamard transforms split for tensor parallelism are not read"),
        ({"rcp": np.array([2])}, r"rcp=\[2\]: must be 0"),
        ({"rcp": np.zeros(3, np.int64)}, r"rcp=\[0, 0, 0\]: must be 0"),
        ({"rcp": "0"}, "rcp='0': must be 0"),
        ({"quip_params": PARAMS | {"split_for_tp": True}}, "rcp: must be given where quip_params has split_for_tp"),
        ({"quip_params": "decode_mode"}, "quip_params: str, must be a mapping"),
        ({"quip_params": PARAMS | {"decode_mode": "1mad"}}, "decode_mode='1mad', must be 'quantlut_sym'"),
        ({"quip_params": PARAMS | {"L": 12}}, "quip_params: L=12, must be 16"),
        ({"quip_params": PARAMS | {"td_x": 8}}, "quip_params: td_x=8, must be 16"),
        ({"quip_params": PARAMS | {"K": 5}}, "quip_params: K=5, must be one of 2, 3, 4"),
        ({"quip_params": PARAMS | {"K": 3}}, "quip_params: K=3, trellis is of 2 bits"),
        ({"quip_params": {"codebook": "E8P12"}}, "no decode_mode: of a QuIP# model, whose layers from_quip reads"),
    ],
)
def test_other_codes_are_refused_by_name(options, message):
    with pytest.raises(CheckpointError, match=message):
        from_qtip(*arrays(), **options)
    for rcp in (0, np.zeros((), np.int64), np.zeros((1, 1), np.int64)):
        assert from_qtip(*arrays(), rcp=rcp, quip_params=PARAMS | {"split_for_tp": True}) == QtipWeight(*arrays())


def test_what_a_weight_tells():
    weight = QtipWeight(*arrays())
    assert weight.nbytes == 32 * 64 * 2 // 8 + 2048 + 2 * 64 + 4 * 32
    assert repr(weight) == "QtipWeight(qtip, shape=(32, 64), 11.000 bits/weight, cpu)"
    with pytest.raises(TypeError, match="its rotation mixes all rows"):
        weight[0:16]
