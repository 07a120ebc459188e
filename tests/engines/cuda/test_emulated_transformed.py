"""What is around a core on a GPU, in the emulator: rotations, sums and products of all kernels, counters, graphs."""

import copy

import numpy as np
import pytest
from emulator import cases, emulate, gpu
from support import errors
from support.errors import error
from support.gpu_products import kernel_named

import codegemm
from codegemm import arrays
from codegemm.devices import CPU, FIRST_GPU
from codegemm.engines.cuda import DequantDense, Psumbook, model, transformed
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.psumbook import MAX_N
from codegemm.engines.cuda.steps import Scratch, Steps
from codegemm.engines.cuda.timing import Graph
from codegemm.engines.cuda.transformed import Around, CudaTransformed
from codegemm.formats.format import spec_of
from codegemm.formats.rotation import Rotation
from codegemm.kernel import Product

TOLERANCE = errors.TOLERANCE["transformed"]
HALF, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
PRODUCTS = [
    # rows, columns, configuration, x's dtype, rows of x
    (40, 96, "m1v4g24+rotated+offsets", "float16", 3),
    (33, 1536, "m1v4g24+rotated", "float16", 1),
    (64, 96, "m1v4g24+offsets", "bfloat16", 16),
    (17, 120, "m1v4g24+terms3", "float32", 3),
    (50, 96, "m1v4g24+rotated8+added+terms2", "bfloat16", 3),
    (40, 600, "m1v4g24+ordered", "float16", 2),
    (33, 96, "m1v4g24+ordered+rotated+offsets", "float32", 3),
    (33, 96, "m1v4g24+ordered+offsets", "bfloat16", 16),
]


@pytest.mark.parametrize("case", PRODUCTS, ids=lambda case: f"{case[2]}-{case[3]}-{case[4]}")
def test_products_match_the_definition(case, make_weight, rng):
    weight, x, truth = cases.with_truth(make_weight, rng, *case)
    kernel = kernel_named("psumbook" if len(x) <= MAX_N else "dequant", weight.spec)
    results = []
    for order in emulate.ORDERS[::2]:
        y, reports = emulate.multiply(kernel, weight, x, order=order)
        assert error(y, truth) <= TOLERANCE
        results.append(y.tobytes())
    assert len(set(results)) == 1
    spec = weight.spec
    kept = not spec.offsets  # in float32 the inner kernel writes y itself
    assert len(reports) == 1 + bool(spec.block or spec.terms > 1 or spec.ordered) + bool(spec.offsets) + (not kept)
    if x.dtype != FLOAT32:
        y, _ = emulate.multiply(kernel, weight, x, out_dtype=x.dtype)
        assert error(y, truth) <= (1e-2 if x.dtype.name == "bfloat16" else 2e-3)


@pytest.mark.parametrize("around", ["+rotated+offsets", "+ordered"])
@pytest.mark.parametrize(("name", "n"), [("dequant", 3), ("dequant_dense", 40), ("dense", 2), ("aqlm", 1)])
def test_all_kernels_multiply_transformed_weights(name, n, around, make_weight, rng):
    weight, x, truth = cases.with_truth(make_weight, rng, 40, 96, f"m2v8g-1{around}", "float16", n)
    y, _ = emulate.multiply(kernel_named(name, weight.spec), weight, x)
    assert error(y, truth) <= TOLERANCE


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ("m1v4g24+rotated+offsets", "bfloat16"),
        ("m1v4g24+rotated", "float16"),
        ("m1v4b4g24+ordered+rotated+terms2", "float16"),
    ],
)
def test_many_rows_are_halves_under_powers_of_two(config, dtype, make_weight, rng):
    weight, x, _ = cases.with_truth(make_weight, rng, 40, 96, config, dtype, transformed.FLOAT_ROWS + 5)
    x[0] *= 6e4 / abs(x[0]).max()
    x[1, slice(None) if weight.order is None else weight.order] = 6e4 * weight.signs  # all in one number of each block
    x[2] *= 1e-5
    x[3] = 0
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    x[4, 50] = np.inf
    y, _ = emulate.multiply(kernel_named("dequant_dense", weight.spec), weight, x)
    assert error(y[5:], truth[5:]) <= TOLERANCE
    assert all(error(y[row], truth[row]) <= 5e-3 for row in range(3))
    assert not y[3].any()
    assert not np.isfinite(y[4]).any()


@pytest.mark.parametrize(
    ("columns", "block"), [(30, 2), (96, 32), (768, 256), (3072, 1024), (4096, 2048), (12288, 4096)]
)  # fmt: skip
def test_rotations_of_every_block(columns, block, rng):
    """Whole, several and partial thread blocks of a row; one to four numbers a thread."""
    spec = spec_of((1, columns), f"m1v1b1g-1+rotated{block}")
    x = rng.standard_normal((2, columns)).astype(np.float16)
    signs = rng.choice([-1, 1], columns).astype(np.int8)
    product, scratch = Product.of(spec, 2, HALF, FLOAT32), Scratch()
    place = scratch.take("x'", (2, columns), FLOAT32)
    launch = Around(product, FLOAT32, x=place, y=None, sums=None, scales=None).rotate_x(emulate.SMALL_GPU)
    factors = emulate.aligned((signs / np.sqrt(block)).astype(np.float32))
    prepared, truth = Prepared(spec, CPU, {"factors": factors}), Rotation(signs, block).rotate(x.astype(np.float64))
    for order in emulate.ORDERS:
        workspace = emulate.new_workspace(scratch.end)
        emulate.run(Steps((launch,), scratch.end), prepared, x, np.zeros(1), workspace, order)
        assert np.abs(place.of(workspace) - truth).max() <= 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("config", ["m1v4g24+ordered", "m1v4g24+ordered+terms3", "m1v4g24+terms2"])
def test_what_is_only_moved_keeps_its_dtype_and_values(config, dtype, make_weight, rng):
    """Of few and of many rows, and of several thread blocks a row."""
    weight = make_weight(1, 648, config)
    for n in (2, transformed.FLOAT_ROWS + 1):
        x = rng.standard_normal((n, 648)).astype(arrays.float_dtype(dtype))
        x[0, :3] = np.inf, np.nan, -0.0
        product, scratch = Product.of(weight.spec, n, x.dtype), Scratch()
        place = scratch.take("x'", (n, weight.spec.core.in_features), transformed.inside(product).dtype)
        launch = Around(product, place.dtype, x=place, y=None, sums=None, scales=None).rotate_x(emulate.SMALL_GPU)
        prepared = Prepared(weight.spec, CPU, {} if weight.order is None else {"order": emulate.aligned(weight.order)})
        workspace = emulate.new_workspace(scratch.end)
        emulate.run(Steps((launch,), scratch.end), prepared, x, np.zeros(1), workspace)
        moved = np.tile(x if weight.order is None else x[:, weight.order], weight.spec.terms)
        assert place.dtype == x.dtype
        assert np.array_equal(place.of(workspace).astype(np.float64), moved.astype(np.float64), equal_nan=True)


def test_calls_plans_copies_and_graphs(emulated_gpu, make_weight, rng):
    weight, x, truth = cases.with_truth(make_weight, rng, *PRODUCTS[0])
    on_gpu = weight.to("cuda")
    assert on_gpu.device == "cuda:0"
    assert on_gpu == weight
    assert np.array_equal(on_gpu[8:].dequantize(), weight.dequantize()[8:])
    joined = codegemm.concat([on_gpu[:8], on_gpu[8:]])
    assert np.array_equal(joined.dequantize(), weight.dequantize())
    assert error(codegemm.matmul(x, on_gpu.T), truth) <= 2e-3
    x_there, y = gpu.aligned(x), gpu.aligned(np.full((3, 40), np.nan, np.float32))
    codegemm.matmul(x_there, on_gpu.T, out=y)
    assert error(y.host, truth) <= TOLERANCE
    bound = codegemm.plan(on_gpu, 3, np.float16, "psumbook")
    assert isinstance(bound.kernel, CudaTransformed)
    bound.prepared = copy.deepcopy(bound.prepared)
    graph = Graph([lambda: bound(x_there, y)], FIRST_GPU)
    y.host[...] = np.nan
    graph.time()
    assert error(y.host, truth) <= TOLERANCE
    few = gpu.aligned(np.full((1, 40), np.nan, np.float16))
    bound(gpu.aligned(x[:1]), few)
    assert error(few.host, truth[:1]) <= 2e-3
    with pytest.raises(codegemm.KernelError, match=r"n=40: its tables hold up to"):
        codegemm.plan(on_gpu, 40, np.float16, "psumbook")
    reasons = {info.name: info.reason for info in codegemm.kernels(on_gpu, 3) if info.engine == "cuda"}
    assert reasons["quip"] == "it multiplies E8PWeights"
    assert reasons["psumbook"] is None


def launched(kernel, product, gpu=KNOWN["h100"]):
    """The instances around the inner kernel's."""
    launches = kernel.decide(product, gpu).launches
    return [launch.instance for launch in launches if launch.source == transformed.SOURCE]


def test_what_is_compiled_and_predicted():
    spec = spec_of((4096, 4096), "m2v8g128+rotated+offsets")
    kernel, dense = CudaTransformed(Psumbook()), CudaTransformed(DequantDense())
    product, core = Product.of(spec, 1, FLOAT32), Product.of(spec.core, 1, FLOAT32)
    for known in KNOWN.values():
        assert kernel.unfit_for(product, known) is None
        whole = model.seconds(kernel.decide(product, known).works, known)
        inner = model.seconds(kernel.inner.decide(core, known).works, known)
        assert inner < whole < inner + 20e-6
    plain = spec_of((4096, 4096), "m2v8g128+offsets")
    assert launched(dense, Product.of(spec, 64, HALF)) == [
        "rotate_x<Half, Float, 4>", "sum_groups<Float>", "finish<Half>",
    ]  # fmt: skip
    assert launched(dense, Product.of(spec, 65, HALF)) == [
        "rotate_x<Half, Half, 4>", "sum_groups<Half>", "finish<Half>",
    ]  # fmt: skip
    assert launched(dense, Product.of(plain, 65, HALF)) == ["sum_groups<Half>", "finish<Half>"]
    moved = spec_of((4096, 4096), "m2v8g128+ordered+terms2")
    for n, dtype, name in ((1, HALF, "Half"), (65, HALF, "Half"), (65, FLOAT32, "Float")):
        assert launched(dense, Product.of(moved, n, dtype)) == [f"rotate_x<{name}, {name}, 1>"]
    # An order is read, and a sector for each number of x that it moves.
    ordered, rotated = (spec_of((4096, 4096), f"m2v8g128{more}+rotated") for more in ("+ordered", ""))
    works = [kernel.decide(Product.of(each, 2, HALF), KNOWN["h100"]).works[0] for each in (ordered, rotated)]
    assert works[0].bytes_read == works[1].bytes_read + 4 * 4096
    assert works[0].l2_bytes == works[1].l2_bytes + 32 * 2 * 4096
    # Tensor cores take as long for float32 as for eight times as many fp16.
    h100 = KNOWN["h100"]
    half, single = (
        model.seconds(dense.decide(Product.of(spec, 2048, dtype), h100).works, h100) for dtype in (HALF, FLOAT32)
    )
    assert half < 0.3 * single


def test_the_bytes_of_an_order_are_counted():
    kernel = CudaTransformed(Psumbook())
    for other in ("+rotated", "+terms2"):
        ordered, without = (spec_of((512, 1024), f"m2v8g128{more}{other}") for more in ("+ordered", ""))
        works = [kernel.decide(Product.of(each, 2, HALF), KNOWN["h100"]).works[0] for each in (ordered, without)]
        assert works[0].bytes_read == works[1].bytes_read + 4 * 1024
        assert ordered.packed_bits == without.packed_bits + 32 * 1024
