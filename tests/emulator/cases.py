"""Covering sets of problems for the emulated kernels, and what their results are held against."""

import copy
import os
import random
import re
import shutil

import numpy as np
from allpairspy import AllPairs

from codegemm import arrays, kernels_cu
from codegemm.config import CodebookConfig
from codegemm.engines.cuda.steps import Scratch, Steps
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
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


def case_of(axes, **values):
    """A case with the first value of every axis where nothing else is said."""
    return {name: axis[0] for name, axis in axes.items()} | {"seed": SEED} | values


def name_of(case):
    """Its name among the tests."""
    return "-".join(str(value) for value in case.values())


def of_tests(request):
    """The cases of those tests of a fixture's module that run and want the fixture."""
    items = (item for item in request.session.items if item.module is request.module)
    return [item.callspec.params["case"] for item in items if request.fixturename in item.fixturenames]


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


SIZES = ("large", "tiny", "mixed")


def x_of_size(size, n, in_features, dtype, rng):
    """x [n, in_features] near the largest or the smallest numbers of its type, or of many magnitudes."""
    limits = np.finfo(np.float16) if dtype == "float16" else np.finfo(np.float32)
    large, tiny = float(limits.max) / 1e3, float(limits.tiny) * (64 if dtype == "float16" else 2**10)
    x = rng.uniform(-1, 1, (n, in_features)) * {"large": large, "tiny": tiny, "mixed": 1.0}[size]
    if size == "mixed":
        x *= 10.0 ** rng.integers(-3, 3, x.shape)
    return x.astype(arrays.float_dtype(dtype))


def check_nonfinite_stays_in_its_row(multiply, x, bad, row, rng):
    """A number that is none, anywhere in a row of x, makes none of all of that row of y and of no other.

    multiply: y of an x.
    """
    clean = multiply(x)
    x[row, rng.integers(x.shape[1])] = bad
    y = multiply(x)
    assert not np.isfinite(y[row]).any()
    assert np.array_equal(np.delete(y, row, 0), np.delete(clean, row, 0))


def check_the_order_does_not_matter(multiply):
    """multiply: y for an order of threads and a seed."""
    results = [multiply(order=order, seed=seed) for seed in range(2) for order in emulate.ORDERS]
    assert all(np.array_equal(result, results[0]) for result in results)


def check_rounded_once(multiply, weight, x):
    """y in the dtype of x is y in float32, rounded; multiply: y and what is known of it."""
    narrow, wide = multiply(weight, x, out_dtype=x.dtype)[0], multiply(weight, x)[0]
    assert narrow.dtype == x.dtype
    assert np.array_equal(narrow, wide.astype(x.dtype))


def check_splits_are_added_in_their_order(kernel, weight, x, launches_of):
    """y has the bits of float32 sums that are added one after the other, whatever loads are in flight.

    launches_of: those of a product, with places in a scratch.
    """
    out, scratch = emulate.aligned(np.full((len(x), weight.shape[0]), np.nan, np.float32)), Scratch()
    launches = launches_of(Product.of(weight.spec, len(x), x.dtype, out.dtype), scratch)
    workspace = emulate.new_workspace(scratch.end)
    emulate.run(Steps(tuple(launches), scratch.end), emulate.arranged(kernel, weight), x, out, workspace)
    total = np.zeros_like(out)
    for each in scratch.places["partial sums"].of(workspace):
        total += each
    assert np.array_equal(out, total)


def check_copied_whole(prepared):
    """Every array of a prepared weight on the emulated GPU, and every number."""
    twin = copy.deepcopy(prepared)
    assert twin.numbers == prepared.numbers
    assert twin.arrays.keys() == prepared.arrays.keys()
    for name, array in prepared.arrays.items():
        assert twin.arrays[name] is not array
        assert np.array_equal(twin.arrays[name].host, array.host)


def uncancelled_norm(x, *matrices):
    """Of x @ sum(matrices).T, in float64, as it is on average over random signs of what is added.

    A few products may cancel, their rounding errors don't.
    """
    x = x.astype(np.float64)
    return np.sqrt(sum(np.sum(x**2 @ (matrix**2).T) for matrix in matrices))


class Truth:
    """The float64 product, and its norm where neither outputs nor the centroids of a vector cancel."""

    def __init__(self, x, weight):
        x = x.astype(np.float64)
        self.y = x @ weight.dequantize(np.float64).T
        parts = weight.spec.part_rows if weight.codebooks.ndim == 4 else None
        alone = [
            CodebookWeight(weight.codes[..., [c]], weight.codebooks[..., [c], :, :], weight.scales, parts)
            for c in range(weight.config.m)
        ]
        self.norm = uncancelled_norm(x, *(w.dequantize(np.float64) for w in alone))


def error(y, truth):
    """Relative to the norm of y."""
    return np.linalg.norm(y.astype(np.float64) - truth.y) / max(truth.norm, np.linalg.norm(truth.y))


def fails(multiply, truth, most):
    """Whether the emulator complains of a product, or its error is larger."""
    try:
        return not error(multiply(), truth) <= most
    except emulate.EmulatorError as complaint:
        print(complaint)
        return True


BARRIER = re.compile(r"(?:if \([^)]*\) )?ptx::(?:sync_block|sync_warp)\(\);")


def barriers(*files):
    """(file, place in its text) of every barrier in the kernels' sources of these names."""
    names = sorted({path.name for file in files for path in kernels_cu.FOLDER.glob(file)})
    return [(name, at.start()) for name in names for at in BARRIER.finditer((kernels_cu.FOLDER / name).read_text())]


def without_barrier(file, at, folder, pattern=BARRIER):
    """A copy of the kernels' sources in `folder` in which that barrier is missing."""
    return changed(file, lambda text: text[:at] + pattern.sub(";", text[at:], count=1), folder)


def with_instead(file, call, instead, folder):
    """A copy of them with something else in place of a text that is there once."""
    assert (kernels_cu.FOLDER / file).read_text().count(call) == 1
    return changed(file, lambda text: text.replace(call, instead), folder)


def changed(file, change, folder):
    """A copy of them with one file's text changed."""
    shutil.copytree(kernels_cu.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / file).write_text(change((folder / file).read_text()))
    return folder
