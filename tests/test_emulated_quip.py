"""The CUDA kernels of the QuIP# baseline in the emulator: rotations, products, counters, barriers."""

import copy

import numpy as np
import pytest
from emulator import cases, emulate, gpu

import codegemm
from codegemm import arrays
from codegemm.baselines import quip_cuda
from codegemm.baselines.quip_cuda import COLUMNS, MATVEC_ROWS, PAIR_ROWS, QuipCuda
from codegemm.engines.cuda import compiler, model, rotation
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.engines.cuda.rows import COUNTER_BYTES
from codegemm.formats import e8p_codebook
from codegemm.formats.e8p import E8PSpec, E8PWeight
from codegemm.formats.hadamard import ORDERS, transform

DTYPES = ("float16", "bfloat16", "float32")
PLACE = np.arange(64).reshape(4, 2, 8).swapaxes(0, 1).ravel()  # k of each place among 64


class Rotations:
    """The launches of one length in the emulator, with a workspace of their own."""

    def __init__(self, vector, n, columns=2):
        self.length, self.n = len(vector), n
        self.vector = gpu.aligned(vector)
        size = n * self.length
        self.places = rotation.Places(columns, COUNTER_BYTES, COUNTER_BYTES + 256, COUNTER_BYTES + 256 + 4 * size)
        self.workspace = gpu.aligned(np.full(self.places.sums + 4 * size, 0xFF, np.uint8))

    def rotate_in(self, x, order="forward"):
        """U^T (vector * x), float64 [n, columns, length], still with the rows' powers of two, and those [n]."""
        self._launch("in", gpu.aligned(x), None, x.dtype, np.dtype(np.float32), order)
        memory = self.workspace.host
        scales = memory[self.places.scales :][: 4 * self.n].view(np.float32)
        rotated = memory[self.places.rotated :][: 2 * self.places.columns * self.n * self.length].view(np.float16)
        inverse = np.argsort(PLACE)
        rows = rotated.reshape(-1, 64)[:, inverse].reshape(self.n, self.places.columns, self.length)
        return rows.astype(np.float64), scales.astype(np.float64)

    def rotate_out(self, sums, scales, dtype, out_dtype, order="forward"):
        """vector * U (sums * scales)."""
        memory = self.workspace.host
        memory[self.places.scales :][: 4 * self.n].view(np.float32)[:] = scales
        memory[self.places.sums :][: 4 * sums.size].view(np.float32)[:] = sums.ravel()
        y = gpu.aligned(np.full(sums.shape, np.nan, out_dtype))
        self._launch("out", None, y, dtype, out_dtype, order)
        return y.host

    def _launch(self, side, x, y, dtype, out_dtype, order):
        vector = rotation.factors(self.vector)
        gpu.emulation.order = order
        none = gpu.aligned(np.zeros(1))
        launch = rotation.decide("cuda:0", side, {side: vector}, self.places, self.n, dtype, out_dtype)
        launch(none if x is None else x, none if y is None else y, self.workspace, None)
        self.report = gpu.emulation.reports[-1]


def relative(y, truth):
    return np.linalg.norm(y - truth) / np.linalg.norm(truth)


INPUTS = cases.covering(
    {
        # A thread block for every segment: those of more than a hundred are emulated slowly.
        "length": [16 * order for order in ORDERS if order < 100 or cases.ALL] + [64, 512, 2048],
        "dtype": DTYPES,
        "order": emulate.ORDERS,
    }
)
SUMS = [4 * order for order in ORDERS] + [16, 32, 1024, 4096, 12 * 64, 28 * 64]


@pytest.mark.parametrize("case", INPUTS, ids=cases.name_of)
def test_emulated_rotation_of_x(case, emulated_gpu, rng):
    length, n = case["length"], 2
    vector = rng.standard_normal(length).astype(np.float16)
    x = rng.standard_normal((n, length)).astype(arrays.float_dtype(case["dtype"]))
    rotations = Rotations(vector, n)
    (rotated, scales), truth = rotations.rotate_in(x, case["order"]), x.astype(np.float64) * vector
    truth = transform(truth, transpose=True)
    assert relative(rotated[:, 0] * scales[:, None], truth) <= 2.5e-4
    assert relative(rotated.sum(1) * scales[:, None], truth) <= 1e-6
    assert abs(rotated[:, 0]).max() <= 2**15
    assert (np.log2(scales) % 1 == 0).all()


@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("order", [*ORDERS, 1])
def test_signs_are_those_of_the_matrix(order, transpose):
    length = 64 * order
    cut = rotation.cut_for(length, 1)
    bits = np.unpackbits(rotation.signs(length, cut, transpose=transpose).view(np.uint8), axis=2, bitorder="little")
    made = bits.swapaxes(1, 2).reshape(cut.order, -1)[:, : cut.order]  # segments of the groups in turns
    segments = np.kron(np.eye(cut.order), np.ones((1, cut.segment)))  # constant, all but the first of S's sums vanish
    first = transform(segments, transpose=transpose)[:, :: cut.segment].T
    assert np.array_equal(made, first < 0)


@pytest.mark.parametrize("length", SUMS)
def test_emulated_rotation_of_sums(length, emulated_gpu, rng):
    vector = rng.standard_normal(length).astype(np.float32)
    sums, scales = rng.standard_normal((2, length)).astype(np.float32), 2.0 ** rng.integers(-20, 20, 2)
    y = Rotations(vector, 2).rotate_out(sums, scales, np.dtype(np.float16), np.dtype(np.float32))
    truth = transform(sums.astype(np.float64)) * vector * scales[:, None]
    for row, expected in zip(y, truth):
        assert relative(row, expected) <= 1e-6


# Every pair of values of every two of these occurs in a case.
AXES = {
    "shape": ((320, 512), (16, 64), (48, 768), (512, 448), (144, 4096), (80, 320), (112, 128)),
    "bits": (2, 3, 4),
    "n": (1, 2, 3, 4, 5, 7, 8, 19),
    "dtype": DTYPES,
    "order": emulate.ORDERS,
}
# Relative to the norm of y, out in float32.
TOLERANCE = {True: 2e-6, False: 4e-4}  # x in two numbers, in one


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


@pytest.fixture(scope="module")
def compiled(request):
    """The products' kernels, compiled on all cores at once."""
    emulate.compile_all([f"quip<{bits}>" for bits in AXES["bits"]], quip_cuda.SOURCE)


@pytest.mark.parametrize("case", CASES, ids=cases.name_of)
def test_emulated_products_and_their_counters(case, compiled, emulated_gpu, rng):
    bits, n, (rows, columns) = case["bits"], case["n"], case["shape"]
    weight, x = operands(rng, case["shape"], bits, n, case["dtype"])
    y, [_, report, _] = gpu.multiply(QuipCuda(), weight, x, order=case["order"], seed=case["seed"])
    assert relative(y, product(x, weight)) <= TOLERANCE[n <= PAIR_ROWS]

    codes = report.of("load_codes", space="global")
    turns = -(-n // COLUMNS)
    assert codes.bytes == turns * bits * rows * columns // 8
    assert codes.sectors == codes.least_sectors == codes.bytes // 32
    steps = turns * rows // 16 * columns // 64
    gathered = report.of("gather")
    assert gathered.wavefronts == gathered.instructions == 4 * steps * (1 if bits == 2 else 2)
    assert report.events["mma"] == gathered.instructions
    read = report.of("load_x", space="global")
    assert read.sectors == read.least_sectors
    for function, kind in (("stage_table", "store"), ("store_partial", "store"), ("add_warps", "load")):
        shared = report.of(function, kind)
        assert shared.wavefronts == shared.least_wavefronts
    blocks = min(emulate.SMALL_GPU.multiprocessors, rows // 16)
    tiles = np.diff(rows // 16 * np.arange(blocks + 1) // blocks)
    passes = -(-tiles // (4 if bits == 2 else 2))
    assert report.events["block barrier"] == turns * (blocks + passes.sum())


@pytest.mark.parametrize("bits", AXES["bits"])
@pytest.mark.parametrize("n", [3, 6])
def test_emulated_results_do_not_depend_on_the_order(bits, n, emulated_gpu, rng):
    weight, x = operands(rng, (112, 256), bits, n)
    results = [
        gpu.multiply(QuipCuda(), weight, x, order=order, seed=seed)[0] for seed in range(2) for order in emulate.ORDERS
    ]
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("n", [PAIR_ROWS, COLUMNS + 1])
def test_emulated_rows_of_x_do_not_touch_each_other(n, emulated_gpu, rng):
    weight, x = operands(rng, (48, 128), n=n)
    together, _ = gpu.multiply(QuipCuda(), weight, x)
    others = rng.standard_normal(x.shape).astype(x.dtype)
    for row in range(n):
        others[row] = x[row]
        assert np.array_equal(gpu.multiply(QuipCuda(), weight, others)[0][: row + 1], together[: row + 1])


@pytest.mark.parametrize(("bits", "dtype"), list(zip(AXES["bits"], DTYPES)))
def test_more_rows_are_multiplied_dense(bits, dtype, emulated_gpu, monkeypatch, rng):
    weight, x = operands(rng, (112, 128), bits, MATVEC_ROWS + 1, dtype)
    monkeypatch.setattr(quip_cuda, "SLICE_BYTES", 2 * 128 * 48)
    y, reports = gpu.multiply(QuipCuda(), weight, x)
    assert len(reports) == 5  # slices of 2, 2 and 3 tiles between the rotations
    assert relative(y, product(x, weight)) <= 5e-4
    assert sum(report.of("load_codes", space="global").bytes for report in reports[1:-1]) == bits * 112 * 128 // 8
    for report in reports[1:-1]:
        written = report.of("dequantize_e8p", "store", "global")
        assert written.sectors == written.least_sectors


def dequantized(weight):
    """What float16 [M, K] as the kernel rebuilds it."""
    kernel, (rows, columns) = QuipCuda(), weight.shape
    weight = weight.to("cuda")
    n = MATVEC_ROWS + 1
    product = kernel.decide(weight.prepared(kernel), n, np.dtype(np.float16), np.dtype(np.float32)).each[1]
    places = quip_cuda.places(weight.spec, n)
    workspace = gpu.aligned(np.full(places.end, 0xFF, np.uint8))
    [part] = product.slices
    none = gpu.aligned(np.zeros(1))
    part.dequantize(none, none, workspace, None)
    dense = workspace.host[places.dense :].view(np.float16).reshape(-1, 64)
    return dense[:, np.argsort(PLACE)].reshape(rows, columns)


@pytest.mark.parametrize("bits", [2, 4])
def test_every_code_is_decoded_exactly(bits, emulated_gpu, rng):
    codes = rng.permutation(1 << 16).astype(np.uint16).reshape(256, 256)
    halves = [e8p_codebook.pack(part) for part in (codes, rng.permutation(codes.ravel()).reshape(codes.shape))]
    qidxs = np.concatenate(halves[: bits // 2], 1)
    weight = E8PWeight(qidxs, np.ones(2048, np.float16), np.ones(256, np.float16), 4.0)  # a power of two: exact
    assert np.array_equal(dequantized(weight), weight.lattice())


def test_every_point_of_the_ball_is_decoded_exactly(emulated_gpu, rng):
    qidxs = make_e8p(rng, 16, 1024, 3).qidxs.copy()
    qidxs[:, 32:] = rng.permutation(np.repeat(np.arange(256, dtype=np.uint8), 8)).reshape(16, 128).view(np.int64)
    weight = E8PWeight(qidxs, np.ones(1024, np.float16), np.ones(16, np.float16), 2.0)
    assert np.array_equal(dequantized(weight), weight.lattice())


@pytest.mark.parametrize("n", [1, COLUMNS, MATVEC_ROWS + 1])
@pytest.mark.parametrize("size", [1e33, 1e-30, 1e-36])
def test_emulated_products_of_large_and_tiny_x(size, n, emulated_gpu, rng):
    weight, x = operands(rng, (48, 128), n=n, dtype="float32")
    x[0] *= size
    y, truth = gpu.multiply(QuipCuda(), weight, x)[0], product(x, weight)
    for row, expected in zip(y, truth):
        assert relative(row, expected) <= 1e-3  # of one row of 48 numbers


def test_emulated_product_of_one_large_element(emulated_gpu, rng):
    """All of a rotated row is as large as can be for its largest element, and the rest of x counts still."""
    weight, x = operands(rng, (48, 512), dtype="float32")
    x[0, 77] = 2.0**20
    x[0, 78] = 2.0**20 - 1
    assert relative(gpu.multiply(QuipCuda(), weight, x)[0], product(x, weight)) <= 2e-6


@pytest.mark.parametrize("bits", AXES["bits"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_emulated_nonfinite_x_stays_in_its_row(bad, bits, emulated_gpu, rng):
    for n in (3, 6):
        weight, x = operands(rng, (48, 128), bits, n)
        clean, _ = gpu.multiply(QuipCuda(), weight, x)
        x[-1, rng.integers(x.shape[1])] = bad
        y, _ = gpu.multiply(QuipCuda(), weight, x)
        assert not np.isfinite(y[-1]).any()
        assert np.array_equal(y[:-1], clean[:-1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_emulated_output_in_the_dtype_of_x(dtype, emulated_gpu, rng):
    weight, x = operands(rng, (48, 128), dtype=dtype)
    wide, _ = gpu.multiply(QuipCuda(), weight, x)
    narrow, _ = gpu.multiply(QuipCuda(), weight, x, out_dtype=x.dtype)
    assert np.array_equal(narrow, wide.astype(x.dtype))


@pytest.mark.parametrize("case", range(4))
def test_emulated_products_of_what_the_original_made(case, emulated_gpu, golden):
    data = golden("quip_e8p")
    weight = E8PWeight(*(data[f"case{case}_{name}"] for name in ("qidxs", "SU", "SV")))
    x, y = data[f"case{case}_x"], data[f"case{case}_y"]
    assert relative(gpu.multiply(QuipCuda(), weight, x[:PAIR_ROWS])[0], y[:PAIR_ROWS]) <= TOLERANCE[True]


BARRIERS = cases.barriers("quip.cu", "e8p.cuh", "rotate.cu", "hadamard.cuh")


def test_barriers_are_found():
    assert len(BARRIERS) == 5


@pytest.mark.parametrize(("file", "at"), BARRIERS)
def test_emulated_kernel_without_a_barrier_fails(file, at, tmp_path, emulated_gpu, rng):
    weight, x = operands(rng, (64, 2048))  # groups of threads, exchanges between warps: every barrier matters
    assert relative(gpu.multiply(QuipCuda(), weight, x)[0], product(x, weight)) <= TOLERANCE[True]
    folder = cases.without_barrier(file, at, tmp_path / "kernels")
    with pytest.raises(emulate.EmulatorError, match=r"with no barrier between them|before it was written"):
        gpu.multiply(QuipCuda(), weight, x, folder=folder)


def test_plan_for_many_rows_runs_few(emulated_gpu, rng):
    n = MATVEC_ROWS + 2
    weight, x = operands(rng, (48, 128), n=n)
    truth = product(x, weight)
    weight = weight.to("cuda")
    plan = codegemm.plan(weight, len(x), x.dtype, "quip")
    assert {n for n, *_ in plan.prepared.runs} == {*range(1, MATVEC_ROWS + 1), n}
    builds = QuipCuda().builds(weight.spec, len(x), x.dtype, weight.device)
    assert {compiler.entry_name(build.instance) for build in builds} == {
        "codegemm_quip_2",
        "codegemm_dequantize_e8p_2",
        "codegemm_rotate_in_Half",
        "codegemm_rotate_out_Half",
    }
    decided = dict(plan.prepared.runs)
    for rows in (n, 9, 8, 4):
        assert relative(plan(gpu.aligned(x[:rows])).host, truth[:rows]) <= 1e-3
    assert plan.prepared.runs == decided


def test_plan_for_many_rows_copies_nothing_for_fewer(emulated_gpu, rng, monkeypatch):
    """A captured call must neither allocate nor wait, whatever number of rows it has."""
    n = MATVEC_ROWS + 3
    weight, x = operands(rng, (48, 128), n=n)
    truth = product(x, weight)
    plan = codegemm.plan(weight.to("cuda"), n, x.dtype, "quip")
    there, out = gpu.aligned(x), gpu.aligned(np.zeros((n, 48), np.float32))
    monkeypatch.setattr(emulated_gpu, "asarray", lambda array: pytest.fail("a copy to the GPU"))
    for rows in (n, n - 1, n - 2, MATVEC_ROWS, 1):
        assert relative(plan(there[:rows], out=out[:rows]).host, truth[:rows]) <= 1e-3


def test_only_many_rows_need_cublas(emulated_gpu, monkeypatch):
    spec, dtype = E8PSpec(48, 128, 2, (16, 16)), np.dtype(np.float16)
    monkeypatch.setattr(quip_cuda.gemm, "unavailable", lambda: "cuBLAS is missing")
    assert QuipCuda().supports(spec, MATVEC_ROWS, dtype, "cuda:0") is None
    assert QuipCuda().supports(spec, MATVEC_ROWS + 1, dtype, "cuda:0") == "cuBLAS is missing"


def test_cublas_is_loaded_when_a_product_of_many_rows_is_decided(emulated_gpu, monkeypatch, rng):
    """A captured product must not."""
    weight, x = operands(rng, (48, 128), n=MATVEC_ROWS + 1)
    loads = []
    monkeypatch.setattr(quip_cuda.gemm, "load", lambda: loads.append(1))
    kernel = QuipCuda()
    prepared = weight.to("cuda").prepared(kernel)
    kernel.bind(prepared, COLUMNS, x.dtype, x.dtype)
    assert not loads
    kernel.bind(prepared, len(x), x.dtype, x.dtype)
    assert loads


def test_prepared_weights_are_copied_whole(emulated_gpu, rng):
    weight, _ = operands(rng, (48, 128), 3)
    prepared = QuipCuda().arrange(weight.to("cuda"))
    made = copy.deepcopy(prepared)
    assert made.numbers == prepared.numbers
    for name, array in prepared.arrays.items():
        assert made.arrays[name] is not array
        assert np.array_equal(made.arrays[name].host, array.host)


@pytest.mark.parametrize("bits", AXES["bits"])
def test_codes_are_arranged_on_the_host_as_on_a_gpu(bits, emulated_gpu, rng):
    weight, _ = operands(rng, (48, 128), bits)
    there = quip_cuda.arrange_codes(weight.to("cuda"))
    for name, array in quip_cuda.arrange_codes(weight).items():
        assert np.array_equal(array, there[name].host)


@pytest.mark.parametrize("n", [1, 3, 8, 1000])
@pytest.mark.parametrize("order", [*ORDERS, 1])
def test_rotations_fit_thread_blocks(order, n):
    for length in (order << shift for shift in range(2, 17)):
        cut = rotation.cut_for(length, n)
        assert cut.order * cut.segment == length
        assert cut.groups * cut.segment <= cut.threads <= rotation.MAX_THREADS
        assert cut.groups == 1 or cut.order // cut.groups >= 8
        assert cut.order * n >= min(32, length // 32)


@pytest.mark.parametrize("name", sorted(KNOWN))
@pytest.mark.parametrize("bits", AXES["bits"])
@pytest.mark.parametrize("n", [1, 4, 8])
def test_partial_sums_fit_every_gpu(n, bits, name):
    spec = E8PSpec(4096, 4096, bits, (16, 16))
    chosen = quip_cuda.warps(spec, n, KNOWN[name])
    assert 16 <= chosen <= quip_cuda.MAX_WARPS
    assert quip_cuda.shared_bytes(spec, n, chosen) <= KNOWN[name].shared_per_block


def test_slices_are_whole_tiles_of_at_most_256_mib():
    spec = E8PSpec(53248, 16384, 2, (16, 16))
    made = quip_cuda.slices(spec)
    assert [first for first, _ in made] == [0, *(end for _, end in made[:-1])]
    assert made[-1][1] * 16 == 53248
    assert max(end - first for first, end in made) * 16 * 16384 * 2 <= 256 << 20
    assert QuipCuda().workspace(spec, 64, "cuda:0") <= COUNTER_BYTES + (256 << 20) + 64 * (2 * 16384 + 4 * 53248) + 512


def test_workspace_is_enough_for_fewer_rows(rng):
    spec = E8PSpec(48, 128, 2, (16, 16))
    for n in (*range(1, 12), MATVEC_ROWS, MATVEC_ROWS + 1):
        assert QuipCuda().workspace(spec, n, "cuda:0") >= max(
            quip_cuda.places(spec, rows).end for rows in range(1, n + 1)
        )


@pytest.mark.parametrize("bits", AXES["bits"])
def test_model_counts_what_the_emulator_counts(bits, emulated_gpu, rng):
    weight, x = operands(rng, (256, 512), bits, 2)
    kernel = QuipCuda()
    _, reports = gpu.multiply(kernel, weight, x)
    before, product, after = kernel.work(weight.spec, len(x), x.dtype, emulate.SMALL_GPU)
    assert product.mma == reports[1].events["mma"]
    assert product.dram_bytes == reports[1].of("load_codes", space="global").bytes
    assert product.l2_bytes == reports[1].of("load_x", space="global").bytes
    gathered = reports[1].of("gather").wavefronts
    assert gathered <= product.wavefronts <= gathered + (product.dram_bytes + product.l2_bytes) / 128
    for work, report in ((before, reports[0]), (after, reports[2])):
        assert report.of("element", space="global").bytes == work.l2_bytes


def test_what_is_refused(make_weight):
    weight = make_weight(32, 128, "m1v4g128")
    assert QuipCuda().refuses(weight.spec, 1, np.dtype(np.float16), KNOWN["h200"]) == "it multiplies E8PWeights"


def test_model_names_what_is_waited_for():
    spec = E8PSpec(28672, 8192, 2, (16, 16))
    works = [
        QuipCuda().work(spec, n, np.dtype(np.float16), KNOWN["h200"]) for n in (1, 8, MATVEC_ROWS, MATVEC_ROWS + 1)
    ]
    assert [len(work) for work in works] == [3, 3, 3, 4]
    assert model.bound(works[0][1], KNOWN["h200"])[0] == "instructions"
    one, eight, several, many = (model.seconds(work, KNOWN["h200"]) for work in works)
    assert eight < 1.3 * one
    assert several < many < 1.6 * several
