"""E8P: the grid, the Hadamard matrices, the packing and the product, against QuIP#'s own."""

import hashlib

import numpy as np
import pytest

from codegemm import E8PWeight
from codegemm.checkpoints import from_quip
from codegemm.formats import e8p_codebook, hadamard
from codegemm.quantize import lattice


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_grid_hashes():
    nibbles = (2 * e8p_codebook.abs_vectors()[:, [0, 2, 4, 6, 1, 3, 5, 7]] + 8).astype(np.uint32)
    words = (nibbles << np.arange(0, 32, 4, dtype=np.uint32)).sum(1, dtype=np.uint32)  # QuIP#'s own table
    assert sha256(words) == "efc2c03c60acd955dc812ff2bade9ec6cc31259807e48473506161f3a9a230ce"
    assert sha256(e8p_codebook.grid()) == "fc8e597645925855da14ee1cfbc53882be2868d46c49960831dd934fe3431800"
    assert len(np.unique(e8p_codebook.grid(), axis=0)) == 1 << 16


def test_residual_grid(golden):
    assert np.array_equal(e8p_codebook.residual_grid(), golden("quip_rvq")["e81b_grid"])


HADAMARD_HASHES = {
    12: "67507aec", 20: "f54960fe", 28: "a6cb994c", 36: "d674d824", 52: "9ee08277", 60: "091e76fb",
    108: "690a34c6", 116: "e35aecfb", 124: "9b41cf52", 140: "b9ff0150", 156: "99a1b852", 172: "378ef12c",
}  # fmt: skip


@pytest.mark.parametrize("order", hadamard.ORDERS)
def test_hadamard_matrices(order, golden):
    matrix = hadamard.hadamard(order)
    assert np.array_equal(np.packbits(matrix > 0), golden("quip_hadamard")[f"had{order}"])
    assert sha256(matrix)[:8] == HADAMARD_HASHES[order]
    assert np.array_equal(matrix.astype(int) @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize("n", [1, 2, 64, 12, 40, 56, 144, 104, 120, 216, 464, 248, 560, 624, 688, 384, 14336])
def test_transform_is_orthogonal_and_its_transpose_its_inverse(n, rng):
    x = rng.standard_normal((3, n))
    y = hadamard.transform(x)
    assert np.allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1))
    assert np.allclose(hadamard.transform(y, transpose=True), x)


@pytest.mark.parametrize("n", [8, 48, 144, 56])
def test_transform_is_the_kronecker_product(n, rng):
    order, power = hadamard.split_length(n)
    sylvester = np.ones((1, 1))
    while len(sylvester) < power:
        sylvester = np.kron(np.array([[1, 1], [1, -1]]), sylvester)
    dense = np.kron(hadamard.hadamard(order), sylvester) / np.sqrt(n)
    x = rng.standard_normal((2, n))
    assert np.allclose(hadamard.transform(x), x @ dense.T)


@pytest.mark.parametrize("n", [1, 2, 56, 64, 2048])
def test_a_row_is_transformed_as_if_alone(n, rng):
    """Bit for bit, whatever blocks many of them are cut into."""
    _, power = hadamard.split_length(n)
    block = max(1, hadamard._BLOCK // power) * power // n
    x = rng.standard_normal((2 * block + 3, n)).astype(np.float32)
    y = hadamard.transform(x)
    for row in (0, block - 1, block, block + 1, 2 * block, 2 * block + 2):
        assert hadamard.transform(x[row]).tobytes() == y[row].tobytes()


def test_lengths_without_a_matrix_are_named():
    with pytest.raises(ValueError, match="length 22: must be a power of two times 1 or one of"):
        hadamard.split_length(22)


@pytest.mark.parametrize("case", range(4))
def test_layers_of_the_original(case, golden):
    data = golden("quip_e8p")
    qidxs, su, sv, x, y = (data[f"case{case}_{name}"] for name in ("qidxs", "SU", "SV", "x", "y"))
    codes = data[f"case{case}_codes"]
    assert np.array_equal(e8p_codebook.unpack(qidxs), codes)
    assert np.array_equal(e8p_codebook.pack(codes), qidxs)
    weight = E8PWeight(qidxs, su, sv)
    assert from_quip(qidxs, su, sv) == weight
    dense = weight.dequantize(np.float64)
    expected = data[f"case{case}_W"].astype(np.float64)
    kept = dense[::16] if case == 3 else dense
    assert np.abs(kept - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.abs(x.astype(np.float64) @ dense.T - y).max() <= 1e-6 * np.abs(y).max()


@pytest.mark.parametrize(("bits", "codebook"), [(3, "E8P12RVQ3B"), (4, "E8P12RVQ4B")])
def test_residual_forms_of_the_original(bits, codebook, golden):
    data = golden("quip_rvq")
    qidxs, lattice = data[f"b{bits}_qidxs"], data[f"b{bits}_W"]
    weight = from_quip(qidxs, np.ones(256, np.float16), np.ones(64, np.float16), codebook)
    assert weight.bits == bits
    assert np.abs(weight.lattice() - lattice).max() <= 1e-12
    rotated = hadamard.transform(hadamard.transform(lattice).T).T
    assert np.abs(weight.dequantize(np.float64) - rotated).max() <= 1e-12
    codes = weight.codes()
    if bits == 4:
        assert np.array_equal(codes.main, data["b4_hi"])
    assert np.array_equal(codes.residual, data[f"b{bits}_lo"])


def test_nearest_point_is_the_originals(golden):
    data = golden("quip_e8p")
    assert np.array_equal(lattice.nearest(data["quant_x"]), data["quant_idx"])


def test_nearest_point_is_the_nearest(rng):
    x = (3 * rng.standard_normal((200, 8))).astype(np.float32)
    grid = e8p_codebook.grid().astype(np.float64)
    best = np.array([((grid - row) ** 2).sum(1).min() for row in x])
    found = ((grid[lattice.nearest(x)] - x) ** 2).sum(1)
    assert np.allclose(found, best, rtol=1e-5)


def weight_arrays(rows=32, columns=128):
    rng = np.random.default_rng(1)
    qidxs = rng.integers(-(1 << 63), 1 << 63, (rows, columns // 32), np.int64)
    return qidxs, np.ones(columns, np.float16), np.ones(rows, np.float16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, u, v: (q.astype(np.int32), u, v), "qidxs: dtype int32, must be int64"),
        (lambda q, u, v: (q[:, :3], u, v), r"qidxs: shape \(32, 3\), must be \[32, n\] with n = 4 \(2 bit\), 6"),
        (lambda q, u, v: (q, u[:100], v), "in_features=100: E8P needs a multiple of 64"),
        (lambda q, u, v: (q, u, v[:20]), "out_features=20: E8P needs a multiple of 16"),
        (lambda q, u, v: (q, u * np.float16(np.nan), v), r"SU: nan at \[0\], must be finite"),
        (lambda q, u, v: (q, u.astype(np.float64), v), "SU: dtype float64"),
        (lambda q, u, v: (q, u[None], v), "SU: shape"),
        (lambda q, u, v: (q, u, v, 0.0), r"resid_scale=0.0: must be a number from 2\*\*-64 to 2\*\*64"),
        (lambda q, u, v: (q, u, v, 1e-40), "resid_scale=1e-40: must be a number"),
        (lambda q, u, v: (q, u, v, "3"), "resid_scale='3': must be a number"),
        (lambda q, u, v: (q, np.ones(64 * 11, np.float16), v), "length 704: must be a power of two times"),
    ],
)
def test_bad_arrays_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        E8PWeight(*change(*weight_arrays()))


def test_what_a_weight_tells():
    weight = E8PWeight(*weight_arrays())
    assert weight.shape == (32, 128)
    assert weight.nbytes == 32 * 128 * 2 // 8 + 2 * (32 + 128)
    assert repr(weight) == "E8PWeight(e8p, shape=(32, 128), 2.625 bits/weight, cpu)"
    with pytest.raises(TypeError, match="rotation mixes all rows"):
        weight[0:16]
