"""Weights around a core: their definition, what they refuse, their names, copies and files."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import codegemm
from codegemm import CheckpointError, CodebookWeight, TransformedWeight, files, storage
from codegemm.formats import random_weight
from codegemm.formats.format import spec_of
from codegemm.formats.rotation import Rotation, default_block

CONFIGS = [
    # rows, columns, configuration
    (9, 96, "m2v4g32+rotated"),
    (5, 30, "m1v3b5g6+rotated1"),
    (7, 24, "m1v4g8+offsets"),
    (6, 40, "m1v4g-1+rotated+offsets"),
    (4, 64, "m1v4b4g16+terms3"),
    (3, 48, "m2v8g-1+rotated4+added+terms2"),
    (1, 7, "m1v1b1g1+added"),
    (6, 40, "m1v4g8+ordered+offsets"),
    (3, 48, "m2v8g-1+ordered+rotated4+added+terms2"),
]


def sylvester(order):
    return np.ones((1, 1)) if order == 1 else np.kron(sylvester(order // 2), [[1, 1], [1, -1]])


def definition(weight):
    """W from the arrays, element by element of the groups, in float64."""
    spec, core = weight.spec, weight.core
    rows, columns = spec.shape
    codes, books, scales = core.codes, core.codebooks.astype(np.float64), core.scales.astype(np.float64)
    dense = np.zeros((rows, columns))
    g, v = columns // spec.groups, core.config.v
    for term in range(spec.terms):
        for at in range(0, columns, v):
            j, group = (term * columns + at) // v, (term * columns + at) // g
            vectors = sum(books[c, codes[:, j, c]] for c in range(core.config.m))
            dense[:, at : at + v] += scales[:, group, None] * vectors
    if weight.offsets is not None:
        factor = scales if spec.offsets == "scaled" else 1.0
        dense += np.repeat(factor * weight.offsets.astype(np.float64), g, axis=1)
    if weight.signs is not None:
        rotation = np.kron(np.eye(columns // spec.block), sylvester(spec.block)) / np.sqrt(spec.block)
        dense = dense @ (rotation * weight.signs)
    if weight.order is not None:
        dense = dense @ np.eye(columns)[weight.order]
    return dense


@pytest.mark.parametrize(("rows", "columns", "config"), CONFIGS)
def test_dequantize_is_the_definition(rows, columns, config, make_weight, rng):
    weight = make_weight(rows, columns, config)
    dense = weight.dequantize(np.float64)
    assert np.abs(dense - definition(weight)).max() <= 1e-13 * np.abs(dense).max()
    assert np.abs(weight.dequantize() - dense).max() <= 1e-6 * np.abs(dense).max()
    x = rng.standard_normal((3, columns))
    y = codegemm.matmul(x, weight.T, kernel="reference")
    assert np.abs(y - x @ dense.T).max() <= 1e-12 * np.abs(y).max()


@pytest.mark.parametrize("columns", [1, 12, 1536, 8192 * 3, 7 * 4096])
def test_a_rotation_is_orthogonal_and_undone(columns, rng):
    block = default_block(columns)
    assert columns % block == 0
    assert block == 4096 or columns // block % 2
    signs = rng.choice([-1, 1], columns).astype(np.int8)
    x = rng.standard_normal((2, columns))
    rotated = Rotation(signs, block).rotate(x)
    assert np.allclose(np.linalg.norm(rotated, axis=1), np.linalg.norm(x, axis=1))
    assert np.allclose(Rotation(signs, block).unrotate(rotated), x)
    assert Rotation(signs, block).rotate(x.astype(np.float32)).dtype == np.float32
    ordered = Rotation(signs, block, rng.permutation(columns))
    assert np.array_equal(ordered.rotate(x), Rotation(signs, block).rotate(x[:, ordered.order]))
    assert np.allclose(ordered.unrotate(ordered.rotate(x)), x)


def test_an_order_says_where_columns_come_from(make_weight, rng):
    core, order, x = make_weight(5, 24, "m1v4g8"), rng.permutation(24), rng.standard_normal((2, 24))
    weight = TransformedWeight(core, order=order.astype(np.uint16))
    assert weight.order.dtype == np.int32
    assert np.array_equal(weight.dequantize()[:, order], core.dequantize())
    expected = codegemm.matmul(x[:, order], core.T, kernel="reference")
    assert np.allclose(codegemm.matmul(x, weight.T, kernel="reference"), expected, rtol=1e-13, atol=1e-13)
    assert weight[1:4].dequantize().tobytes() == weight.dequantize()[1:4].tobytes()
    joined = codegemm.concat([weight, weight[2:]])
    assert np.array_equal(joined.dequantize(), np.concatenate([weight.dequantize(), weight.dequantize()[2:]]))


def test_a_rotated_dense_matrix_is_the_core(make_weight, rng):
    """What a quantiser does: C for which C @ R is W."""
    weight = make_weight(6, 64, "m1v4g-1+rotated16")
    dense = Rotation(weight.signs, 16).rotate(weight.dequantize(np.float64))
    assert np.allclose(dense, weight.core.dequantize(np.float64))


def test_bits_count_everything():
    weight = random_weight((64, 256), "m1v4g32+rotated+offsets")
    plain = random_weight((64, 256), "m1v4g32")
    assert weight.spec.packed_bits == plain.spec.packed_bits + 256 + 16 * 64 * 8
    ordered = random_weight((64, 256), "m1v4g32+ordered")
    assert ordered.spec.packed_bits == plain.spec.packed_bits + 32 * 256
    terms = random_weight((64, 256), "m1v4b4g32+terms3").spec
    assert terms.packed_bits == 3 * 64 * 64 * 4 + 16 * 16 * 4 + 3 * 16 * 64 * 8


def test_only_files_with_extensions_are_of_version_2(tmp_path, make_weight):
    path = tmp_path / "w.safetensors"
    make_weight(4, 16, "m1v4").save(path)
    assert files.File(path).metadata["version"] == "1"
    make_weight(4, 16, "m1v4g8+rotated+offsets").save(path, "a")
    file = files.File(path)
    assert file.metadata["version"] == "2"
    assert json.loads(file.metadata["a"]) == {
        "v": 4, "m": 1, "b": 8, "g": 8, "shape": [4, 16], "terms": 1, "block": 16, "offsets": "scaled",
    }  # fmt: skip
    assert file.tensors["a.signs"].shape == (2,)
    for config in ("m1v4g8+ordered", "m1v4g8+ordered+rotated+offsets", "e8p+ordered"):
        weight = make_weight(16, 64, config)
        weight.save(path)
        assert files.File(path).metadata["version"] == "4"  # who read up to 3 would multiply by another matrix
        assert codegemm.load(path) == weight
    with pytest.raises(ValueError, match=r"tensor 'a.signs': is part of a weight"):
        storage.save_all(path, {"a": make_weight(4, 16, "m1v4")}, {"a.signs": np.ones(3)})


@pytest.mark.parametrize(
    ("tensors", "values", "message"),
    [
        ({"signs": np.zeros(3, np.uint8)}, {}, r"signs: uint8 \(3,\), must be uint8 \(2,\)"),
        ({"signs": np.ones(16, np.int8)}, {}, r"signs: int8 \(16,\), must be"),
        ({"offsets": np.ones((4, 3), np.float16)}, {}, r"offsets: shape \(4, 3\), must be \(4, 2\)"),
        ({"offsets": np.full((4, 2), np.inf, np.float16)}, {}, "offsets: inf at"),
        ({}, {"block": 3}, "block=3: must be a power of two"),
        ({}, {"block": 32}, "block=32: must be a power of two up to 4096 that divides in_features=16"),
        ({}, {"block": "8"}, "block='8': must be an integer"),
        ({}, {"offsets": "odd"}, "offsets 'odd', must be 'scaled' or 'added'"),
        ({}, {"terms": 2}, r"codes: uint8 \(4, 4\), must be uint8 \(4, 8\)"),
        ({}, {"terms": -1}, "must be"),
        ({}, {"ordered": "yes"}, "ordered 'yes', must be true"),
        ({}, {"ordered": True}, "'weight.order' is missing"),
        ({"order": np.ones(16, np.int32)}, {"ordered": True}, "order: 1 is there 16 times"),
        ({"order": np.arange(16)}, {"ordered": True}, "order: dtype int64, must be int32"),
    ],
)
def test_broken_files_are_refused(tensors, values, message, tmp_path, make_weight):
    path = tmp_path / "w.safetensors"
    make_weight(4, 16, "m1v4g8+rotated+offsets").save(path)
    metadata = files.File(path).metadata
    description = json.loads(metadata["weight"]) | values
    changed = load_file(path) | {f"weight.{name}": array for name, array in tensors.items()}
    save_file(changed, path, metadata | {"weight": json.dumps(description)})
    with pytest.raises(CheckpointError, match=message):
        codegemm.load(path)


@pytest.fixture
def core(make_weight):
    return make_weight(4, 24, "m1v4g8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signs": np.ones(23)}, r"signs: shape \(23,\), must be \(24,\)"),
        ({"signs": np.r_[np.ones(23), 0]}, "signs: 0.0 at 23, must be 1 or -1"),
        ({"signs": np.ones(24, bool)}, "signs: dtype bool"),
        ({"signs": np.ones(24), "block": 16}, "block=16: must be a power of two up to 4096 that divides"),
        ({"signs": np.ones(24), "block": 0}, "block=0"),
        ({"block": 8}, "there is no rotation without signs"),
        ({"scaled": True}, "there are no offsets"),
        ({"offsets": np.ones((4, 3), np.float32)}, "offsets: dtype float32, must be float16"),
        ({"offsets": np.ones((4, 1), np.float16)}, r"offsets: shape \(4, 1\), must be \(4, 3\)"),
        ({"order": np.arange(23)}, r"order: shape \(23,\), must be \(24,\)"),
        ({"order": np.arange(24.0)}, "order: dtype float64, must be of integers"),
        ({"order": np.arange(1, 25)}, "order: 24 at 23, must be from 0 to 23"),
        ({"order": np.arange(-1, 23)}, "order: -1 at 0, must be from 0 to 23"),
        ({"order": np.r_[np.arange(23), 7]}, "order: 7 is there 2 times, must be there once"),
        ({"order": np.r_[0, 5, 5, np.full(21, 3)].astype(np.uint64)}, "order: 5 is there 2 times"),
        ({"order": np.full(24, np.uint64(1 << 63))}, "order: 9223372036854775808 at 0, must be from 0 to 23"),
        ({"order": np.ones(24, bool)}, "order: dtype bool, must be of integers"),
        ({"terms": 5}, "terms=5: must be at least 1 and divide the core's 24 columns"),
        ({"terms": 2}, "terms=2: must divide the core's 3 groups"),
        ({"terms": 1.5}, "terms=1.5: must be an integer"),
        ({"terms": 3, "offsets": np.ones((4, 1), np.float16), "scaled": True}, "can't be scaled by several scales"),
    ],
)
def test_bad_parts_are_refused(arguments, message, core):
    with pytest.raises(ValueError, match=message):
        TransformedWeight(core, **arguments)


def test_what_does_not_belong_together_is_refused(core, make_weight):
    signs = np.ones(24)
    weight = TransformedWeight(core, signs=signs)
    with pytest.raises(TypeError, match="core: TransformedWeight, must be a weight of another format"):
        TransformedWeight(weight)
    with pytest.raises(TypeError, match="a TransformedWeight can't be joined with a CodebookWeight"):
        codegemm.concat([weight, core])
    with pytest.raises(ValueError, match="concat: signs must be the same"):
        codegemm.concat([weight, TransformedWeight(core, signs=-signs)])
    with pytest.raises(ValueError, match=r"concat: block must be the same, got \['4', '8'\]"):
        codegemm.concat([weight, TransformedWeight(core, signs=signs, block=4)])
    assert weight != TransformedWeight(core, signs=-signs)
    ordered, reversed_order = (TransformedWeight(core, order=np.arange(24)[::step]) for step in (1, -1))
    assert ordered != reversed_order
    with pytest.raises(ValueError, match="concat: order must be the same"):
        codegemm.concat([ordered, reversed_order])
    with pytest.raises(ValueError, match="concat: some parts have their columns in another order and some do not"):
        codegemm.concat([weight, TransformedWeight(core, signs=signs, order=np.arange(24))])
    lattice = make_weight(16, 64, "e8p3")
    other = codegemm.E8PWeight(*lattice.arrays.values(), resid_scale=2.5)
    assert TransformedWeight(lattice, signs=np.ones(64)) != TransformedWeight(other, signs=np.ones(64))
    assert isinstance(codegemm.concat([core, core]), CodebookWeight)
    for text in ("m1v4+rotated3", "m1v4+terms0", "m1v4+rotated32"):
        with pytest.raises(ValueError, match="must be"):
            spec_of((4, 24), text)
