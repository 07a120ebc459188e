"""Covering sets of problems for the emulated kernels, and what their results are held against."""

import os
import random
import shutil

import numpy as np
from allpairspy import AllPairs

from codegemm import arrays, kernels_cu
from codegemm.formats.codebook import CodebookSpec
from codegemm.formats.codebook_config import CodebookConfig
from codegemm.kernel import Product
from emulator import emulate

ALL = bool(os.environ.get("CODEGEMM_TEST_ALL"))
SEED = 20
# Axes of every product; `group_vectors` are those that share a scale (-1: the whole row), `groups` scales a row.
COMMON = {
    "dtype": ("float16", "bfloat16", "float32"),
    "rows": (100, 1, 31, 32, 65, 257),
    "groups": (3, 1, 2, 5),
    "parts": (1, 2, 3),
    "order": emulate.ORDERS,
}


def some(values, step=2):
    """One of so many, for tests that take long and rarely fail; all of them for `make test-all`."""
    return values if ALL else values[::step]


def covering(axes, more=0, allowed=lambda case: True):
    """Dictionaries of one value for every axis: every pair of values of every two axes, and `more` drawn at random."""
    names = list(axes)
    pairs = AllPairs(list(axes.values()), filter_func=lambda values: allowed(dict(zip(names, values))))
    draw = random.Random(SEED)
    drawn = ({name: draw.choice(axis) for name, axis in axes.items()} for _ in range(more))
    covered = [dict(zip(names, values)) for values in pairs] + [case for case in drawn if allowed(case)]
    for index, case in enumerate(covered):
        case["seed"] = SEED + index
        if "parts" in case:
            case["parts"] = min(case["parts"], case["rows"])
    return covered


def name_of(case):
    """Its name among the tests."""
    return "-".join(str(value) for value in case.values())


def spec_of(case):
    """The weight's spec."""
    vectors = case["group_vectors"] * case["groups"] if case["group_vectors"] > 0 else 37 * case["groups"]
    g = case["group_vectors"] * case["v"] if case["group_vectors"] > 0 else -1
    bounds = np.linspace(0, case["rows"], case["parts"] + 1).astype(int)
    config = CodebookConfig(v=case["v"], m=case["m"], b=case["b"], g=g)
    return CodebookSpec(case["rows"], vectors * case["v"], config, tuple(np.diff(bounds).tolist()))


def product_of(case):
    """The product of the case, y in float32."""
    return Product.of(spec_of(case), case["n"], arrays.float_dtype(case["dtype"]), np.float32)


def operands(case, make_weight, rng):
    """A weight of the case's spec with random codes, and x."""
    spec = spec_of(case)
    weight = make_weight(*spec.shape, str(spec.config), case["parts"])
    assert weight.spec == spec or weight.spec.groups == 1
    x = rng.standard_normal((case["n"], spec.in_features)).astype(arrays.float_dtype(case["dtype"]))
    return weight, x


def with_truth(make_weight, rng, rows, columns, config, dtype, n):
    """A weight with random codes, x, and their product in float64."""
    weight = make_weight(rows, columns, config)
    x = rng.standard_normal((n, columns)).astype(arrays.float_dtype(dtype))
    return weight, x, x.astype(np.float64) @ weight.dequantize(np.float64).T


def error(y, truth):
    """Relative to the norm of y."""
    return np.linalg.norm(y.astype(np.float64) - truth.y) / truth.norm()


def with_instead(file, call, instead, folder):
    """A copy of the kernels' sources in `folder` with something else in place of a text that is there once."""
    assert (kernels_cu.FOLDER / file).read_text().count(call) == 1
    return changed(file, lambda text: text.replace(call, instead), folder)


def changed(file, change, folder):
    """A copy of the kernels' sources in `folder` with one file's text changed."""
    shutil.copytree(kernels_cu.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / file).write_text(change((folder / file).read_text()))
    return folder
