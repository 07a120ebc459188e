"""The CUDA dequantising kernel in the emulator: results, counters, barriers, both forms."""

import dataclasses
import random

import numpy as np
import pytest
from emulator import cases, emulate
from emulator.cases import COMMON, Truth, error, spec_of
from emulator.gpu import aligned, multiply

from codegemm import arrays
from codegemm.engines.cuda import dequant_cut as cut
from codegemm.engines.cuda import dequant_layout as layout
from codegemm.engines.cuda import dequant_plain as plain
from codegemm.engines.cuda import device, library, rows
from codegemm.engines.cuda.dequant import Dequant
from codegemm.engines.cuda.gpu import Gpu
from codegemm.formats import names

KERNEL = Dequant()
# Relative to the norm of y, out in float32.
TOLERANCE = {"float16": 2e-5, "bfloat16": 2e-5, "float32": 1e-3}
GPUS = {
    "data centre": emulate.SMALL_GPU,
    "desktop": Gpu(89, 2, shared_per_block=101376, shared_per_multiprocessor=102400, threads_per_multiprocessor=1536),
}
FAST = {
    "v": (4, 8, 16),
    "m": (1, 2, 3, 5),
    "b": (8, 2, 4, 6, 12),
    "group_vectors": (32, 4, 1, 5, 12, 25, -1),
    "n": (1, 9, 17, 64),
    **COMMON,
    "gpu": tuple(GPUS),
    "cut": ("best", "any"),
}
PLAIN = {
    "v": (3, 1, 2, 4, 5, 7, 12),
    "m": (1, 2, 8),
    "b": (8, 5, 12),
    "group_vectors": (1, 3, -1),
    "n": (1, 4, 17),
    **COMMON,
    "gpu": ("data centre",),
}


def is_fast(case):
    """Whether the fast form multiplies the case, or None while it is incomplete."""
    if not {"v", "group_vectors", "groups"} <= set(case):
        return None
    return cut.fits(spec_of({"m": 1, "b": 8, "rows": 1, "parts": 1} | case))


FAST_CASES = cases.covering(FAST, 200 if cases.ALL else 0, lambda case: is_fast(case) is not False)
PLAIN_CASES = cases.covering(PLAIN, 100 if cases.ALL else 0, lambda case: is_fast(case) is not True)


@pytest.fixture(scope="module")
def compiled(request):
    """The kernels of all cases that run, compiled on all cores at once."""
    items = (item for item in request.session.items if item.module is request.module)
    chosen = [item.callspec.params["case"] for item in items if "compiled" in item.fixturenames]
    for source in ("dequant.cu", "dequant_plain.cu"):
        found = {
            instance
            for case in chosen
            for made, instance in KERNEL.instances(
                spec_of(case), case["n"], arrays.float_dtype(case["dtype"]), GPUS[case["gpu"]]
            )
            if made == source
        }
        emulate.compile_all(found, source)


def run(case, make_weight, rng, monkeypatch):
    """The emulated product, its float64 truth, the report, the weight and its cut."""
    weight, x = cases.operands(case, make_weight, rng)
    gpu = GPUS[case["gpu"]]
    monkeypatch.setattr(device, "gpu", lambda where: gpu)
    made = None
    if cut.fits(weight.spec):
        made = cut.cut_for(weight.spec, len(x), gpu)
        if case.get("cut") == "any":
            found = [c for c in cut.candidates(weight.spec, len(x), gpu) if c.shared == made.shared]
            made = random.Random(case["seed"]).choice(found)
            monkeypatch.setattr(cut, "cut_for", lambda spec, n, gpu: made)
    y, [report] = multiply(KERNEL, weight, x, order=case["order"], seed=case["seed"])
    return y, Truth(x, weight), report, weight, made


@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g-1", "m1v8b16g-1", "m2v16g32"])
def test_cuts_are_found_once_for_all_n_that_take_the_same(config):
    """Searching takes a tenth of a second, and a plan asks for every n."""
    spec = names.spec_of((256, 1024), config)
    cut._fastest.cache_clear()
    for gpu in GPUS.values():
        for n in range(1, cut.MAX_N + 1):
            found = min(cut.candidates(spec, n, gpu), key=lambda made: cut.estimate(made, spec, gpu))
            assert cut.cut_for(spec, n, gpu) == found
    assert cut._fastest.cache_info().misses == len(GPUS) * cut.MAX_N // cut.BATCHES[0]


@pytest.mark.parametrize("case", FAST_CASES, ids=cases.name_of)
def test_emulated_products_and_their_counters(case, emulated_gpu, compiled, make_weight, rng, monkeypatch):
    y, truth, report, weight, made = run(case, make_weight, rng, monkeypatch)
    assert error(y, truth) <= TOLERANCE[case["dtype"]]

    spec = weight.spec
    blocks, pieces = rows.row_blocks(spec), 2 if spec.config.v == 16 else 1
    lookups = report.of("look_up", space="shared" if made.shared else "global")
    assert lookups.instructions == made.k_blocks * 16 * spec.config.m * pieces * blocks * made.passes
    if made.shared:
        assert lookups.wavefronts == lookups.instructions * (2 if spec.config.v == 4 else 4)
        copies = report.of("copy_codebooks", "store")
        assert copies.wavefronts == copies.least_wavefronts
    fragments = report.of("load_fragment")
    assert fragments.wavefronts == 4 * fragments.instructions
    codes = report.of("load_codes", space="global")
    assert codes.sectors == codes.least_sectors
    assert codes.bytes == made.k_blocks * spec.config.m * blocks * layout.block_bytes(spec) * made.passes
    scales = report.of("load_scales", space="global")
    assert scales.sectors == scales.least_sectors
    stores = report.of("build_x", "store")
    assert stores.wavefronts == stores.least_wavefronts


@pytest.mark.parametrize("case", PLAIN_CASES, ids=cases.name_of)
def test_emulated_plain_products(case, emulated_gpu, compiled, make_weight, rng, monkeypatch):
    y, truth, report, weight, _ = run(case, make_weight, rng, monkeypatch)
    assert error(y, truth) <= 1e-6
    assert (
        report.events["block barrier"]
        == rows.row_blocks(weight.spec) * plain.cut_for(weight.spec, len(y), GPUS[case["gpu"]]).splits
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", ["large", "tiny", "mixed"])
def test_emulated_range_of_x(dtype, size, emulated_gpu, make_weight, rng):
    weight = make_weight(40, 512, "m2v4g64")
    limits = np.finfo(np.float16) if dtype == "float16" else np.finfo(np.float32)
    large, tiny = float(limits.max) / 1e3, float(limits.tiny) * (64 if dtype == "float16" else 2**10)
    scale = {"large": large, "tiny": tiny, "mixed": 1.0}[size]
    x = rng.uniform(-1, 1, (9, 512)) * scale
    if size == "mixed":
        x *= 10.0 ** rng.integers(-3, 3, x.shape)
    x = x.astype(arrays.float_dtype(dtype))
    y, _ = multiply(KERNEL, weight, x)
    assert error(y, Truth(x, weight)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("config", ["m1v4g32", "m1v5g-1"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_emulated_nonfinite_x_stays_in_its_row(bad, config, emulated_gpu, make_weight, rng):
    weight = make_weight(40, 160, config)
    x = rng.standard_normal((3, 160)).astype(np.float32)
    clean, _ = multiply(KERNEL, weight, x)
    x[1, rng.integers(160)] = bad
    y, _ = multiply(KERNEL, weight, x)
    assert not np.isfinite(y[1]).any()
    assert np.array_equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g-1", "m1v3g-1"])
def test_emulated_results_do_not_depend_on_the_order(config, emulated_gpu, make_weight, rng):
    weight = make_weight(130, 1536, config, 2)
    x = rng.standard_normal((5, 1536)).astype(np.float16)
    made = cut.cut_for(weight.spec, 5, emulate.SMALL_GPU) if cut.fits(weight.spec) else None
    assert made is None or made.splits > 1
    results = [multiply(KERNEL, weight, x, order=order, seed=seed)[0] for seed in (0, 1) for order in emulate.ORDERS]
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_emulated_output_in_the_dtype_of_x(name, emulated_gpu, make_weight, rng):
    for config in ("m1v4g32", "m1v6g-1"):
        weight = make_weight(45, 192, config)
        x = rng.standard_normal((17, 192)).astype(arrays.float_dtype(name))
        wide, _ = multiply(KERNEL, weight, x)
        narrow, _ = multiply(KERNEL, weight, x, x.dtype)
        assert np.array_equal(narrow, wide.astype(x.dtype))


@pytest.mark.parametrize("n", [1, 16, 40, 64])
@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g-1", "m1v3g-1"])
def test_emulated_joins_make_as_many_trips_as_predicted(config, n, emulated_gpu, make_weight, rng):
    """In order, the last split's warps add all of their blocks of rows, for all passes' rows of x."""
    weight = make_weight(96, 1536, config)
    x = rng.standard_normal((n, weight.shape[1])).astype(np.float16)
    _, [report] = multiply(KERNEL, weight, x)
    if cut.fits(weight.spec):
        made = cut.cut_for(weight.spec, n, emulate.SMALL_GPU)
        assert made.passes == (1 if n <= 32 else 2)
        blocks = [
            len(range(first + w, end, made.warps)) for _, first, end, _, _ in made.slices for w in range(made.warps)
        ]
    else:
        made, blocks = plain.cut_for(weight.spec, n, emulate.SMALL_GPU), [1] * rows.row_blocks(weight.spec)
    assert made.splits > 1
    assert report.events["trip"] == sum(rows.join_trips(made.splits, n, count) for count in blocks)


@pytest.mark.parametrize("n", [1, 20, 50])
def test_emulated_joins_add_splits_in_their_order(n, emulated_gpu, make_weight, rng):
    """The bits of float32 sums that are added one after the other, whatever loads are in flight."""
    weight = make_weight(96, 1536, "m1v4g128").to("cuda")
    made = cut.cut_for(weight.spec, n, emulate.SMALL_GPU)
    assert made.splits > 2
    x, out = aligned(rng.standard_normal((n, 1536)).astype(np.float16)), aligned(np.full((n, 96), np.nan, np.float32))
    workspace = aligned(np.zeros(KERNEL.workspace(weight.spec, n, "cuda:0"), np.uint8))
    KERNEL.run(weight.prepared(KERNEL), x, out, workspace, None)
    size = made.splits * n * 96
    partial = workspace.host[rows.COUNTER_BYTES :].view(np.float32)[:size].reshape(made.splits, n, 96)
    total = np.zeros((n, 96), np.float32)
    for each in partial:
        total += each
    assert np.array_equal(out.host, total)


def test_joins_of_many_splits_and_rows_of_x_wait_sixteen_times():
    """4096 x 14336: 32 splits, 16 rows of x, two blocks of rows a warp; one row of x at a time it would be 128."""
    assert rows.join_trips(32, 16, 2) == 16


BARRIERS = cases.barriers("dequant.cu", "dequant_*", "splits.cuh")


def test_barriers_are_found():
    assert len(BARRIERS) == 8


def cuts_with_every_barrier(spec):
    """Several chunks of x a split, with one split of K and with several; the plain form has one cut."""
    if not cut.fits(spec):
        return [None]
    found = [c for c in cut.candidates(spec, 20, emulate.SMALL_GPU) if c.warps == 4]
    one, several = (next(c for c in found if (c.splits > 1) == split and c.split_blocks > 2) for split in (False, True))
    return [dataclasses.replace(c, chunk_blocks=2) for c in (one, several)]


@pytest.mark.parametrize(("file", "at"), BARRIERS)
def test_emulated_kernel_without_a_barrier_fails(file, at, emulated_gpu, tmp_path, make_weight, rng, monkeypatch):
    folder = cases.without_barrier(file, at, tmp_path / "kernels")
    weight = make_weight(130, 768, "m1v3g-1" if file == "dequant_plain.cu" else "m1v4g128")
    x = rng.standard_normal((20, weight.shape[1])).astype(np.float16)
    truth = Truth(x, weight)

    def fails(order, seed):
        try:
            y, _ = multiply(KERNEL, weight, x, order=order, seed=seed, folder=folder)
        except emulate.EmulatorError as complaint:
            print(complaint)
            return True
        return not error(y, truth) <= TOLERANCE["float16"]

    failures = 0
    for made in cuts_with_every_barrier(weight.spec):
        if made:
            monkeypatch.setattr(cut, "cut_for", lambda spec, n, gpu, made=made: made)
        weight._prepared.clear()
        failures += any(fails(order, seed) for seed in range(4) for order in emulate.ORDERS)
        library.forget()
        weight._prepared.clear()
        y, _ = multiply(KERNEL, weight, x, order="shuffled")
        assert error(y, truth) <= TOLERANCE["float16"]
    assert failures
