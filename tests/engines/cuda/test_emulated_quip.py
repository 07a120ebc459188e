"""The CUDA kernels of the QuIP# baseline in the emulator: rotations, products, counters."""

import numpy as np
import pytest
from emulator import cases, emulate
from support import errors
from support.errors import error

from codegemm import arrays
from codegemm.baselines.cuda import quip
from codegemm.baselines.cuda.quip import EXACT_ROWS, MATVEC_ROWS, ROWS, Quip
from codegemm.devices import CPU, FIRST_GPU
from codegemm.engines.cuda import gemm, model, rotation
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.steps import COUNTER_BYTES, Scratch, Steps
from codegemm.formats import e8p_codebook
from codegemm.formats.e8p import E8PSpec, E8PWeight
from codegemm.formats.hadamard import ORDERS, transform
from codegemm.kernel import Product

KERNEL, HALF, H200 = Quip(), np.dtype(np.float16), KNOWN["h200"]
DTYPES = ("float16", "bfloat16", "float32")
# k of each place among 64 of fp16.
PLACE = np.arange(64).reshape(4, 2, 4, 2).transpose(1, 0, 3, 2).ravel()


def rotate(side, vector, x, y, digits=4, order="forward", **before):
    """Launch a rotation of two rows; what is in its workspace afterwards by name, and `before`."""
    length, bits, scratch = len(vector), 8 * vector.itemsize, Scratch()
    shape, dtype = ((2, digits, length), np.int8) if digits else ((2, length), np.float16)
    places = {
        "scales": scratch.take("scales", (2,), np.float32),
        "rotated": scratch.take("rotated", shape, dtype),
        "sums": scratch.take("sums", (2, length), np.float32),
    }
    workspace = emulate.new_workspace(scratch.end)
    for name, values in before.items():
        places[name].of(workspace)[...] = values
    product = Product.of(E8PSpec(length, length, 2, (bits, bits)), 2, x.dtype, y.dtype)
    launch = rotation.launch(side, product, *places.values(), emulate.SMALL_GPU)
    prepared = Prepared(product.spec, CPU, {side: emulate.aligned(vector)})
    emulate.run(Steps((launch,), workspace.nbytes), prepared, x, y, workspace, order)
    return {name: place.of(workspace) for name, place in places.items()}


INPUTS = cases.covering(
    {
        # A thread block for every segment: those of more than a hundred are emulated slowly.
        "length": [16 * order for order in ORDERS if order < 100 or cases.ALL] + [64, 512, 2048],
        "dtype": DTYPES,
        "vector": ("float16", "float32"),
        "digits": (0, 3, 4),
        "order": emulate.ORDERS,
    }
)
SUMS = [4 * order for order in ORDERS] + [16, 32, 1024, 4096, 12 * 64, 28 * 64]


@pytest.mark.parametrize("case", INPUTS, ids=cases.name_of)
def test_emulated_rotation_of_x(case, rng):
    """U^T (vector * x), over the rows' powers of two."""
    length, digits = case["length"], case["digits"]
    vector = rng.standard_normal(length).astype(case["vector"])
    x = rng.standard_normal((2, length)).astype(arrays.float_dtype(case["dtype"]))
    found = rotate("in", vector, x, np.zeros(1, np.float32), digits, case["order"])
    rotated, scales = (found[name].astype(np.float64) for name in ("rotated", "scales"))
    if digits:
        rotated = rotated.reshape(2, digits, -1, 2, 2, 4).swapaxes(3, 4).reshape(rotated.shape)
        rotated = np.einsum("ndk,d->nk", rotated, 256.0 ** np.arange(digits)) * rotation.DIGIT_UNIT[digits]
    else:
        rotated = rotated.reshape(-1, 64)[:, np.argsort(PLACE)].reshape(rotated.shape) * rotation.FP16_UNIT
    truth = transform(x.astype(np.float64) * vector, transpose=True)
    assert error(rotated * scales[:, None], truth) <= {0: 3e-4, 3: 1e-5, 4: 1e-6}[digits]
    assert abs(rotated).max() <= 2
    assert (np.log2(scales) % 1 == 0).all()


@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("order", [*ORDERS, 1])
def test_signs_are_those_of_the_matrix(order, transpose):
    length = 64 * order
    cut = rotation.cut_for(length, 1)
    bits = np.unpackbits(rotation.signs(length, cut, transpose=transpose).view(np.uint8), axis=2, bitorder="little")
    negative = bits.swapaxes(1, 2).reshape(cut.order, -1)[:, : cut.order]  # segments of the groups in turns
    segments = np.kron(np.eye(cut.order), np.ones((1, cut.segment)))  # constant, all but the first of S's sums vanish
    first = transform(segments, transpose=transpose)[:, :: cut.segment].T
    assert np.array_equal(negative, first < 0)


@pytest.mark.parametrize("length", SUMS)
def test_emulated_rotation_of_sums(length, rng):
    """vector * U (sums * scales)."""
    vector = rng.standard_normal(length).astype(np.float32)
    sums, scales = rng.standard_normal((2, length)).astype(np.float32), 2.0 ** rng.integers(-20, 20, 2)
    y = emulate.aligned(np.full(sums.shape, np.nan, np.float32))
    rotate("out", vector, np.zeros(1, HALF), y, sums=sums, scales=scales)
    truth = transform(sums.astype(np.float64)) * vector * scales[:, None]
    for row, expected in zip(y, truth):
        assert error(row, expected) <= 1e-6


# Every pair of values of every two of these occurs in a case.
AXES = {
    "shape": ((320, 512), (16, 64), (48, 768), (512, 448), (144, 4096), (80, 320), (112, 128)),
    "bits": (2, 3, 4),
    "n": (1, 2, 3, 4, 5, 7, 8, 19),
    "dtype": DTYPES,
    "order": emulate.ORDERS,
}
TOLERANCE = errors.TOLERANCE["quip"]


def allowed(case):
    """What takes the emulator long comes with few rows of x."""
    return cases.ALL or case.get("shape", (0, 0))[1] < 4096 or case.get("n", 1) == 1


CASES = cases.covering(AXES, 200 if cases.ALL else 0, allowed)


def make_e8p(rng, rows, columns, bits, dtype=np.float16):
    """A weight of random codes whose SU and SV are any reals."""
    qidxs = rng.integers(-(2**63), 2**63 - 1, (rows, bits * columns // 64), endpoint=True)
    return E8PWeight(qidxs, *(rng.standard_normal(length).astype(dtype) for length in (columns, rows)))


def operands(rng, shape=(320, 512), bits=2, n=1, dtype="float16"):
    x = rng.standard_normal((n, shape[1])).astype(arrays.float_dtype(dtype))
    return make_e8p(rng, *shape, bits), x


def product(x, weight):
    return x.astype(np.float64) @ weight.dequantize(np.float64).T


def steps_of(case):
    spec = E8PSpec(*case["shape"], case["bits"], (16, 16))
    product = Product.of(spec, case["n"], arrays.float_dtype(case["dtype"]), np.float32)
    return KERNEL.decide(product, emulate.SMALL_GPU)


@pytest.mark.parametrize("case", CASES, ids=cases.name_of)
def test_emulated_products_and_their_counters(case, compiled, rng):
    bits, n, (rows, columns) = case["bits"], case["n"], case["shape"]
    weight, x = operands(rng, case["shape"], bits, n, case["dtype"])
    y, [_, report, _] = emulate.multiply(KERNEL, weight, x, order=case["order"], seed=case["seed"])
    assert error(y, product(x, weight)) <= TOLERANCE[n <= EXACT_ROWS]

    codes = report.of("load_codes", space="global")
    turns, together = -(-n // ROWS), quip._TOGETHER[bits]
    assert codes.bytes == turns * bits * rows * columns // 8
    assert codes.sectors == codes.least_sectors == codes.bytes // 32
    steps = turns * rows // 16 * columns // 64
    gathered = report.of("gather")
    assert gathered.wavefronts == gathered.instructions == 8 * steps * (2 if bits == 4 else 1)
    if bits == 3:
        ball = report.of("gather_ball")
        assert ball.instructions == 4 * steps
        assert ball.wavefronts <= 2 * ball.instructions
    read = report.of("load_x", space="global")
    assert read.sectors == read.least_sectors
    for function, kind in (("stage_table", "store"), ("add_warps", "load")):
        shared = report.of(function, kind)
        assert shared.wavefronts == shared.least_wavefronts
    partial = report.of("store_partial", "store")
    most = 2 if n in (1, 2, 4) else 8  # a lone tile's sums for every second row of x lie in the same banks
    assert partial.wavefronts <= most * partial.instructions  # eight bytes a lane
    blocks = min(emulate.SMALL_GPU.multiprocessors, rows // 16)
    tiles = np.diff(rows // 16 * np.arange(blocks + 1) // blocks)
    passes = -(-tiles // together)
    assert report.events["block barrier"] == turns * (blocks + 2 * passes.sum())
    sums_of_x = turns * passes.sum() * columns // 64
    assert report.events["integer mma"] == 2 * quip.groups(n) * (steps * (1 if bits == 2 else 2) + sums_of_x)


@pytest.mark.parametrize("n", [4, ROWS + 1])
def test_emulated_rows_of_x_do_not_touch_each_other(n, rng):
    weight, x = operands(rng, (48, 128), n=n)
    together, _ = emulate.multiply(KERNEL, weight, x)
    others = rng.standard_normal(x.shape).astype(x.dtype)
    for row in range(n):
        others[row] = x[row]
        assert np.array_equal(emulate.multiply(KERNEL, weight, others)[0][: row + 1], together[: row + 1])


@pytest.mark.parametrize(("bits", "dtype"), list(zip(AXES["bits"], DTYPES)))
def test_more_rows_are_multiplied_dense(bits, dtype, rng):
    weight, x = operands(rng, (112, 128), bits, MATVEC_ROWS + 1, dtype)
    y, reports = emulate.multiply(Quip(slice_bytes=2 * 128 * 48), weight, x)
    assert len(reports) == 5  # slices of 2, 2 and 3 tiles between the rotations
    assert error(y, product(x, weight)) <= 5e-4
    assert sum(report.of("load_codes", space="global").bytes for report in reports[1:-1]) == bits * 112 * 128 // 8
    for report in reports[1:-1]:
        written = report.of("dequantize_e8p", "store", "global")
        assert written.sectors == written.least_sectors


def dequantized(weight):
    """What float16 [M, K] as the kernel rebuilds it."""
    steps = KERNEL.decide(Product.of(weight.spec, MATVEC_ROWS + 1, HALF, np.float32), emulate.SMALL_GPU)
    _, dequantize, product, _ = steps.each
    workspace, none = emulate.new_workspace(steps.workspace), np.zeros(1)
    emulate.run(Steps((dequantize,), steps.workspace), emulate.arranged(KERNEL, weight), none, none, workspace)
    return product.dense.of(workspace).reshape(-1, 64)[:, np.argsort(PLACE)].reshape(weight.shape)


@pytest.mark.parametrize("bits", [2, 4])
def test_every_code_is_decoded_exactly(bits, rng):
    codes = rng.permutation(1 << 16).astype(np.uint16).reshape(256, 256)
    halves = [e8p_codebook.pack(part) for part in (codes, rng.permutation(codes.ravel()).reshape(codes.shape))]
    qidxs = np.concatenate(halves[: bits // 2], 1)
    weight = E8PWeight(qidxs, np.ones(2048, np.float16), np.ones(256, np.float16), 4.0)  # a power of two: exact
    assert np.array_equal(dequantized(weight), weight.lattice())


def test_every_point_of_the_ball_is_decoded_exactly(rng):
    qidxs = make_e8p(rng, 16, 1024, 3).qidxs.copy()
    qidxs[:, 32:] = rng.permutation(np.repeat(np.arange(256, dtype=np.uint8), 8)).reshape(16, 128).view(np.int64)
    weight = E8PWeight(qidxs, np.ones(1024, np.float16), np.ones(16, np.float16), 2.0)
    assert np.array_equal(dequantized(weight), weight.lattice())


@pytest.mark.parametrize("n", [1, ROWS, MATVEC_ROWS + 1])
@pytest.mark.parametrize("size", [1e33, 1e-30, 1e-36])
def test_emulated_products_of_large_and_tiny_x(size, n, rng):
    weight, x = operands(rng, (48, 128), n=n, dtype="float32")
    x[0] *= size
    y, truth = emulate.multiply(KERNEL, weight, x)[0], product(x, weight)
    for row, expected in zip(y, truth):
        assert error(row, expected) <= 1e-3  # of one row of 48 numbers


def test_emulated_product_of_one_large_element(rng):
    """All of a rotated row is as large as can be for its largest element, and the rest of x counts still."""
    weight, x = operands(rng, (48, 512), dtype="float32")
    x[0, 77] = 2.0**20
    x[0, 78] = 2.0**20 - 1
    assert error(emulate.multiply(KERNEL, weight, x)[0], product(x, weight)) <= 2e-6


@pytest.mark.parametrize("case", range(4))
def test_emulated_products_of_what_the_original_made(case, golden):
    data = golden("quip_e8p")
    weight = E8PWeight(*(data[f"case{case}_{name}"] for name in ("qidxs", "SU", "SV")))
    x, y = data[f"case{case}_x"], data[f"case{case}_y"]
    assert error(emulate.multiply(KERNEL, weight, x)[0], y) <= TOLERANCE[len(x) <= EXACT_ROWS]


def test_only_many_rows_need_cublas(emulated_gpu, monkeypatch):
    spec = E8PSpec(48, 128, 2, (16, 16))
    monkeypatch.setattr(gemm, "unavailable", lambda: "cuBLAS is missing")
    assert KERNEL.refuses(Product.of(spec, MATVEC_ROWS, HALF), FIRST_GPU) is None
    assert KERNEL.refuses(Product.of(spec, MATVEC_ROWS + 1, HALF), FIRST_GPU) == "cuBLAS is missing"


def test_cublas_is_loaded_when_a_product_of_many_rows_is_bound(emulated_gpu, monkeypatch, rng):
    """A captured product must not."""
    weight, x = operands(rng, (48, 128), n=MATVEC_ROWS + 1)
    loads = []
    monkeypatch.setattr(gemm, "load", lambda: loads.append(1))
    prepared = KERNEL.prepared(weight.to("cuda"))
    KERNEL.bind(prepared, Product.of(weight.spec, ROWS, x.dtype))
    assert not loads
    KERNEL.bind(prepared, Product.of(weight.spec, len(x), x.dtype))
    assert loads


@pytest.mark.parametrize("n", [1, 3, 8, 1000])
@pytest.mark.parametrize("order", [*ORDERS, 1])
def test_rotations_fit_thread_blocks(order, n):
    for length in (order << shift for shift in range(2, 17)):
        cut = rotation.cut_for(length, n)
        assert cut.order * cut.segment == length
        assert cut.groups * cut.segment <= rotation.EACH * cut.threads <= rotation.EACH * rotation.MAX_THREADS
        assert cut.groups == 1 or cut.order // cut.groups >= 4
        assert cut.order * n >= min(32, length // 32)


@pytest.mark.parametrize("name", sorted(KNOWN))
@pytest.mark.parametrize("bits", AXES["bits"])
@pytest.mark.parametrize("n", [1, 4, 8])
def test_partial_sums_fit_every_gpu(n, bits, name):
    spec = E8PSpec(4096, 4096, bits, (16, 16))
    chosen = quip.warps(spec, n, KNOWN[name])
    assert 16 <= chosen <= quip.MAX_WARPS
    assert quip.shared_bytes(spec, n, chosen) <= KNOWN[name].shared_per_block


def test_slices_are_whole_tiles_of_at_most_256_mib():
    spec = E8PSpec(53248, 16384, 2, (16, 16))
    slices = KERNEL.slices(spec)
    assert [first for first, _ in slices] == [0, *(end for _, end in slices[:-1])]
    assert slices[-1][1] * 16 == 53248
    assert max(end - first for first, end in slices) * 16 * 16384 * 2 <= 256 << 20
    workspace = max(KERNEL.decide(Product.of(spec, n, HALF), H200).workspace for n in KERNEL.batches(64))
    assert workspace <= COUNTER_BYTES + (256 << 20) + 64 * (2 * 16384 + 4 * 53248) + 512


@pytest.mark.parametrize("bits", AXES["bits"])
def test_model_counts_what_the_emulator_counts(bits, rng):
    weight, x = operands(rng, (256, 512), bits, 2)
    _, reports = emulate.multiply(KERNEL, weight, x)
    steps = KERNEL.decide(Product.of(weight.spec, len(x), x.dtype, np.float32), emulate.SMALL_GPU)
    before, product, after = steps.works
    assert product.mma == reports[1].events["integer mma"]
    assert product.dram_bytes == reports[1].of("load_codes", space="global").bytes
    x_sectors = reports[1].of("load_x", space="global").sectors
    assert product.l2_bytes <= 32 * x_sectors <= 2 * product.l2_bytes  # each block's last look ahead is for nothing
    gathered = reports[1].of("gather").wavefronts + (2 * reports[1].of("gather_ball").instructions if bits == 3 else 0)
    assert gathered <= product.wavefronts <= gathered + (product.dram_bytes + product.l2_bytes) / 128
    for work, report, loads in ((before, reports[0], ["load", "load_early"]), (after, reports[2], ["load_value"])):
        assert sum(report.of(function, space="global").bytes for function in loads) == work.l2_bytes


def test_model_names_what_is_waited_for():
    spec = E8PSpec(28672, 8192, 2, (16, 16))
    works = [Quip(1 << 30).decide(Product.of(spec, n, HALF), H200).works for n in (1, 8, MATVEC_ROWS, MATVEC_ROWS + 1)]
    assert [len(each) for each in works] == [3, 3, 3, 4]
    assert model.bound(works[0][1:2], H200) == "memory"
    one, eight, several, many = (model.seconds(each, H200) for each in works)
    assert eight < 1.6 * one
    assert several < many < 1.6 * several
