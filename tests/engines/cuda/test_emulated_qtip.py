"""The CUDA kernels of the QTIP baseline in the emulator: states, products, counters."""

import numpy as np
import pytest
from emulator import cases, emulate
from support import errors
from support.errors import error

from codegemm import QtipWeight, arrays
from codegemm.baselines.cuda import qtip
from codegemm.baselines.cuda.qtip import MATVEC_ROWS, ROWS, Qtip
from codegemm.devices import CPU
from codegemm.engines.cuda import model, rotation
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.steps import Scratch, Steps
from codegemm.formats import random_weight, spec_of
from codegemm.formats.hadamard import transform
from codegemm.kernel import Product

KERNEL, HALF, H200 = Qtip(), np.dtype(np.float16), KNOWN["h200"]
TOLERANCE = errors.TOLERANCE["qtip"]
# Every pair of values of every two of these occurs in a case.
AXES = {
    "shape": ((96, 224), (32, 32), (64, 1024), (448, 64), (128, 4096), (288, 320), (640, 96)),
    "bits": (2, 3, 4),
    "n": (1, 2, 3, 4, 5, 7, 8, 19),
    "dtype": ("float16", "bfloat16", "float32"),
    "order": emulate.ORDERS,
}


def allowed(case):
    """What takes the emulator long comes with few rows of x."""
    return cases.ALL or case.get("shape", (0, 0))[1] < 4096 or case.get("n", 1) == 1


CASES = cases.covering(AXES, 150 if cases.ALL else 0, allowed)


def operands(rng, shape=(96, 224), bits=2, n=1, dtype="float16"):
    """A weight of random codes whose SU and SV are any reals, and x."""
    weight = random_weight(shape, f"qtip{bits}", int(rng.integers(1 << 31)))
    su, sv = (rng.standard_normal(length).astype(np.float32) for length in shape[::-1])
    x = rng.standard_normal((n, shape[1])).astype(arrays.float_dtype(dtype))
    return QtipWeight(weight.trellis, weight.tlut, su.astype(np.float16), sv), x


def product(x, weight):
    return x.astype(np.float64) @ weight.dequantize(np.float64).T


def steps_of(case):
    spec = spec_of(case["shape"], f"qtip{case['bits']}")
    product = Product.of(spec, case["n"], arrays.float_dtype(case["dtype"]), np.float32)
    return KERNEL.decide(product, emulate.SMALL_GPU)


@pytest.mark.parametrize("case", CASES, ids=cases.name_of)
def test_emulated_products_and_their_counters(case, compiled, rng):
    bits, n, (rows, columns) = case["bits"], case["n"], case["shape"]
    weight, x = operands(rng, case["shape"], bits, n, case["dtype"])
    y, [_, report, _] = emulate.multiply(KERNEL, weight, x, order=case["order"], seed=case["seed"])
    assert error(y, product(x, weight)) <= TOLERANCE

    codes = report.of("load_codes", space="global")
    turns, steps = -(-n // ROWS), rows // 32 * columns // 32
    assert codes.bytes == turns * bits * rows * columns // 8
    assert codes.sectors == codes.least_sectors or bits == 3  # twelve bytes a lane come in three loads
    gathered = report.of("gather")
    assert gathered.wavefronts == gathered.instructions == 16 * turns * steps
    read = report.of("load_x", space="global")
    assert read.sectors == read.least_sectors
    for function, kind in (("stage_table", "store"), ("add_warps", "load"), ("store_partials", "store")):
        shared = report.of(function, kind)
        assert shared.wavefronts == shared.least_wavefronts, function
    blocks = min(emulate.SMALL_GPU.multiprocessors, rows // 32)
    assert report.events["block barrier"] == turns * (blocks + 2 * rows // 32)
    assert report.events["mma"] == 4 * qtip.groups(n) * turns * steps


@pytest.mark.parametrize("n", [4, ROWS + 1])
def test_emulated_rows_of_x_do_not_touch_each_other(n, rng):
    weight, x = operands(rng, (64, 128), n=n)
    together, _ = emulate.multiply(KERNEL, weight, x)
    others = rng.standard_normal(x.shape).astype(x.dtype)
    for row in range(n):
        others[row] = x[row]
        assert np.array_equal(emulate.multiply(KERNEL, weight, others)[0][: row + 1], together[: row + 1])


@pytest.mark.parametrize("bits", AXES["bits"])
def test_more_rows_are_multiplied_dense(bits, rng):
    weight, x = operands(rng, (224, 128), bits, MATVEC_ROWS + 1)
    y, reports = emulate.multiply(Qtip(slice_bytes=2 * 128 * 96), weight, x)
    assert len(reports) == 5  # slices of 2, 2 and 3 strips between the rotations
    assert error(y, product(x, weight)) <= 5e-4
    assert sum(report.of("load_codes", space="global").bytes for report in reports[1:-1]) == bits * 224 * 128 // 8
    for report in reports[1:-1]:
        written = report.of("dequantize_qtip", "store", "global")
        assert written.sectors == written.least_sectors


@pytest.mark.parametrize("bits", AXES["bits"])
def test_every_state_is_decoded_exactly(bits, rng):
    """Of random codes there are enough for each of them to occur."""
    weight = random_weight((2048, 2048), f"qtip{bits}", int(rng.integers(1 << 31)))
    assert len(np.unique(weight.states())) == 1 << 16
    steps = KERNEL.decide(Product.of(weight.spec, MATVEC_ROWS + 1, HALF, np.float32), emulate.SMALL_GPU)
    _, dequantize, product, _ = steps.each
    workspace, none = emulate.new_workspace(steps.workspace), np.zeros(1)
    emulate.run(Steps((dequantize,), steps.workspace), emulate.arranged(KERNEL, weight), none, none, workspace)
    # k of each place among 32: pairs of four eights together.
    place = np.arange(32).reshape(4, 4, 2).transpose(1, 0, 2).ravel()
    dense = product.dense.of(workspace).reshape(-1, 32)[:, np.argsort(place)].reshape(weight.shape)
    core = np.concatenate([block for _, block in weight.core_blocks(np.dtype(np.float32))])
    assert np.array_equal(dense, core)


@pytest.mark.parametrize("dtype", AXES["dtype"])
@pytest.mark.parametrize("length", [32, 224, 2048])
def test_rotated_x_is_two_halves(length, dtype, rng):
    x = rng.standard_normal((2, length)).astype(arrays.float_dtype(dtype))
    vector, scratch = rng.standard_normal(length).astype(np.float16), Scratch()
    scales = scratch.take("scales", (2,), np.float32)
    rotated = scratch.take("rotated", (2, 2, length), np.float16)
    sums = scratch.take("sums", (2, length), np.float32)
    product = Product.of(spec_of((length, length), "qtip"), 2, x.dtype, np.float32)
    launch = rotation.launch("in", product, scales, rotated, sums, emulate.SMALL_GPU, pairs=True)
    workspace = emulate.new_workspace(scratch.end)
    prepared = Prepared(product.spec, CPU, {"in": emulate.aligned(vector)})
    emulate.run(Steps((launch,), workspace.nbytes), prepared, emulate.aligned(x), np.zeros(1), workspace)
    halves = rotated.of(workspace).astype(np.float64).sum(1) * scales.of(workspace)[:, None] * rotation.FP16_UNIT
    place = np.arange(32).reshape(4, 4, 2).transpose(1, 0, 2).ravel()
    found = halves.reshape(2, -1, 32)[..., np.argsort(place)].reshape(2, length)
    truth = transform(x.astype(np.float64) * vector, transpose=True)
    assert error(found, truth) <= 1e-6


@pytest.mark.parametrize("n", [1, ROWS, MATVEC_ROWS + 1])
@pytest.mark.parametrize("size", [1e33, 1e-30, 1e-36])
def test_emulated_products_of_large_and_tiny_x(size, n, rng):
    weight, x = operands(rng, (64, 128), n=n, dtype="float32")
    x[0] *= size
    y, truth = emulate.multiply(KERNEL, weight, x)[0], product(x, weight)
    for row, expected in zip(y, truth):
        assert error(row, expected) <= 1e-3  # of one row of 64 numbers


def test_emulated_product_of_one_large_element(rng):
    weight, x = operands(rng, (64, 512), dtype="float32")
    x[0, 77] = 2.0**20
    x[0, 78] = 2.0**20 - 1
    assert error(emulate.multiply(KERNEL, weight, x)[0], product(x, weight)) <= TOLERANCE


@pytest.mark.parametrize("case", ["k2", "k3", "k4", "k2had"])
def test_emulated_products_of_what_the_original_made(case, golden):
    data = golden("qtip")
    weight = QtipWeight(*(data[f"{case}_{name}"] for name in ("trellis", "tlut", "SU", "SV")))
    assert error(emulate.multiply(KERNEL, weight, data[f"{case}_x"])[0], data[f"{case}_y"]) <= TOLERANCE


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_table_and_partial_sums_fit_every_gpu(name):
    assert qtip.shared_bytes(ROWS, qtip.MAX_WARPS) <= KNOWN[name].shared_per_block


def test_codes_are_taken_as_they_are(rng):
    weight, _ = operands(rng)
    assert not KERNEL.rearranged
    assert KERNEL.arrange(weight).arrays["codes"] is weight.trellis


@pytest.mark.parametrize("bits", AXES["bits"])
def test_model_counts_what_the_emulator_counts(bits, rng):
    weight, x = operands(rng, (256, 512), bits, 2)
    _, reports = emulate.multiply(KERNEL, weight, x)
    steps = KERNEL.decide(Product.of(weight.spec, len(x), x.dtype, np.float32), emulate.SMALL_GPU)
    _, product, _ = steps.works
    assert product.mma == reports[1].events["mma"]
    assert product.dram_bytes == reports[1].of("load_codes", space="global").bytes
    x_sectors = reports[1].of("load_x", space="global").sectors
    assert product.l2_bytes / 2 <= 32 * x_sectors <= 2 * product.l2_bytes
    gathered = reports[1].of("gather").wavefronts
    assert gathered <= product.wavefronts <= gathered + (product.dram_bytes + product.l2_bytes) / 128


def test_model_says_instructions_bind():
    spec = spec_of((28672, 8192), "qtip")
    one, eight = (Qtip().decide(Product.of(spec, n, HALF), H200).works for n in (1, 8))
    assert len(one) == len(eight) == 3
    assert model.bound(one[1:2], H200) == "instructions"
    assert model.seconds(eight, H200) < 1.3 * model.seconds(one, H200)
