"""Weights that hold their codes once: in a kernel's order alone, or in somebody else's arrays."""

import copy
import pickle

import numpy as np
import pytest
from emulator.cases import some

import codegemm
from codegemm.formats.format import registered

EXAMPLES = [text for format in registered() for text in format.examples]
CASES = [
    *((96, 960, text, 1) for text in some(EXAMPLES)),
    *((320, 960, text, 1) for text in some(EXAMPLES[::-1])),  # the others
    (4900, 384, "m1v4g128", 1),  # several slices of rows, the last no whole group
    (4800, 384, "m2v8g-1", 3),
    (700, 325, "m3v5b5g-1", 1),
    (200, 768, "m8v1g64", 2),
    (700, 264, "q2v6g66", 2),
]


def let_go(weight):
    """Names of arrays that a weight holds no more."""
    held = getattr(weight, "core", weight)
    return [name for name in held.tensor_names if name not in vars(held)]


@pytest.mark.parametrize("kernel", ["psumbook", "quip", "qtip", "lutgemm", "auto"])
@pytest.mark.parametrize(("rows", "columns", "config", "parts"), CASES)
def test_nothing_is_lost(rows, columns, config, parts, kernel, make_weight, rng):
    """Whatever is asked of a weight that let go of its codes, and by whichever kernel it is multiplied."""
    weight = make_weight(rows, columns, config, parts)
    before, truth = pickle.loads(pickle.dumps(weight)), weight.dequantize(np.float64)
    try:
        chosen = codegemm.compact(weight, kernel=kernel)
    except codegemm.KernelError as error:
        assert kernel != "auto"
        pytest.skip(str(error))
    assert chosen.name == kernel or kernel == "auto"
    assert let_go(weight) == list(chosen.rearranged)
    assert weight == before
    assert np.array_equal(weight.dequantize(np.float64), truth)
    for twin in (pickle.loads(pickle.dumps(weight)), copy.deepcopy(weight)):
        assert twin == before
        assert not let_go(twin)
    x = rng.standard_normal((130, columns)).astype(np.float32)
    for n in (1, 5, 130):
        for kernel in ("auto", "dequant", "dequant_dense", "psumbook", "quip", "qtip", "lutgemm", "aqlm"):
            try:
                y = codegemm.matmul(x[:n], weight.T, kernel=kernel)
            except codegemm.KernelError:
                continue
            exact = x[:n] @ truth.T
            assert np.linalg.norm(y - exact) <= 2e-4 * np.linalg.norm(exact), (kernel, n)
    assert let_go(weight) == list(chosen.rearranged)


def test_parts_of_it_are_weights(make_weight, rng):
    weight = make_weight(330, 256, "m2v4g32+rotated")
    before = pickle.loads(pickle.dumps(weight))
    codegemm.compact(weight, kernel="psumbook")
    x = rng.standard_normal((3, 256)).astype(np.float32)
    part = weight[70:301]
    assert part == before[70:301]
    assert codegemm.concat([weight[:70], part, weight[301:]]).shape == weight.shape
    assert np.allclose(x @ part.T, (x @ before.T)[:, 70:301], atol=1e-2)
    assert codegemm.plan(weight)(x[:1]).shape == (1, 330)


@pytest.mark.filterwarnings("ignore:CPU kernels run in NumPy")
def test_the_same_by_numpy(no_compiler, make_weight, rng):
    """Where there is no compiler."""
    weight = make_weight(330, 256, "m1v4g32")
    truth = weight.dequantize(np.float64)
    codegemm.compact(weight, kernel="psumbook")
    x = rng.standard_normal((3, 256)).astype(np.float32)
    for kernel in ("psumbook", "dequant", "dequant_dense"):
        y = codegemm.matmul(x, weight.T, kernel=kernel)
        assert np.linalg.norm(y - x @ truth.T) <= 1e-5 * np.linalg.norm(y)


def test_what_is_read_as_it_is_stays(make_weight):
    weight = make_weight(64, 128, "m1v8b16g-1")
    plan = codegemm.plan(weight, kernel="dequant")
    assert codegemm.compact(weight, kernel="dequant").name == "dequant"
    assert not let_go(weight)
    assert plan(np.zeros((1, 128), np.float32)).shape == (1, 64)
    with pytest.raises(TypeError, match="compact: w is ndarray, must be a quantised weight"):
        codegemm.compact(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="n=0: must be an integer of at least 1"):
        codegemm.compact(weight, 0)


def test_arrays_are_adopted(make_weight):
    """As they are: none is copied, whoever else can write to them."""
    for config in ("m1v4g16", "m2v8b5g-1", "m1v8b16g32", "e8p4"):
        weight = make_weight(64, 128, config)
        arrays = {name: array.copy() for name, array in weight.arrays.items()}
        made = type(weight).adopt(**arrays, **weight.options)
        assert made == weight
        for name, array in arrays.items():
            assert np.shares_memory(getattr(made, name), array)
            assert not getattr(made, name).flags.writeable
    rotated = make_weight(64, 128, "m1v4g16+rotated+offsets")
    around = {"signs": rotated.signs, "offsets": rotated.offsets}
    assert type(rotated).adopt(core=rotated.core, **around, **rotated.options) == rotated
    with pytest.raises(ValueError, match="codebooks: dtype float64, must be float16"):
        codegemm.CodebookWeight.adopt(
            codes=np.zeros((4, 4, 1), np.uint8), codebooks=np.ones((1, 2, 8)), scales=np.ones((4, 4))
        )
