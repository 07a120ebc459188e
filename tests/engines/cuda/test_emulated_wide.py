"""The dequantising kernel's form for Hopper in the emulator: results, counters and barriers."""

import dataclasses
import random
import re

import numpy as np
import pytest
from emulator import cases, emulate
from emulator.cases import COMMON, Truth, error, product_of, spec_of
from support import errors

from codegemm import arrays, kernels_cu
from codegemm.engines.cuda import dequant_fast, dequant_wide, rows
from codegemm.engines.cuda import dequant_layout as layout
from codegemm.engines.cuda import dequant_wide_cut as wide_cut
from codegemm.engines.cuda.dequant import Dequant
from codegemm.engines.cuda.dequant_wide_cut import candidates, cut_for, fits
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.engines.cuda.steps import Scratch, Steps
from codegemm.formats import names
from codegemm.formats.codebook import CodebookWeight
from codegemm.kernel import Product

KERNEL, GPU = Dequant(), emulate.SMALL_GPU
TOLERANCE = errors.TOLERANCE["dequant"]
AXES = {
    "v": (4, 8, 16),
    "m": (1, 2),
    "b": (8, 2, 4, 6),
    "group_vectors": (32, 16, 12, 25, -1),
    "n": (33, 64, 100),
    **COMMON,
    "cut": ("best", "any"),
}


def possible(case):
    """Whether this form multiplies the case, or True while it is incomplete."""
    return not set(AXES) <= set(case) or fits(product_of(case), GPU)


CASES = cases.covering(AXES, 100 if cases.ALL else 0, possible)


def cut_of(case):
    best = cut_for(spec_of(case), case["n"], GPU)
    if case["cut"] == "best":
        return best
    return random.Random(case["seed"]).choice(candidates(spec_of(case), case["n"], GPU))


def cut_steps(product, cut):
    scratch = Scratch()
    return Steps(tuple(dequant_wide.launches(product, cut, GPU, scratch)), scratch.end)


def steps_of(case):
    return cut_steps(product_of(case), cut_of(case))


def multiply(weight, x, out_dtype=np.float32, steps=None, **options):
    """The emulated product and the report of what multiplies, cut as it is estimated to be fastest or as told."""
    product = Product.of(weight.spec, len(x), x.dtype, out_dtype)
    steps = steps or cut_steps(product, cut_for(weight.spec, len(x), GPU))
    y, [*_, report] = emulate.multiply(KERNEL, weight, x, out_dtype, steps=steps, **options)
    return y, report


@pytest.mark.parametrize("case", CASES, ids=cases.name_of)
def test_emulated_products_and_their_counters(case, compiled, make_weight, rng):
    weight, x = cases.operands(case, make_weight, rng)
    y, report = multiply(weight, x, steps=steps_of(case), order=case["order"], seed=case["seed"])
    assert error(y, Truth(x, weight)) <= TOLERANCE[case["dtype"]]

    spec, cut = weight.spec, cut_of(case)
    blocks, count = rows.row_blocks(spec), spec.config.m * layout.k_blocks(spec)
    codes = report.of("copy_codes", space="global")
    assert codes.bytes == count * blocks * layout.block_bytes(spec)
    assert codes.sectors == codes.least_sectors * (3 - cut.chains)  # two warps of one chain share them
    for kind in ("load", "store"):
        kept = report.of("read_codes" if kind == "load" else "copy_codes", kind)
        assert kept.wavefronts == kept.least_wavefronts
    x_bytes = wide_cut.x_bytes(spec, cut.batch, x.dtype) * layout.k_blocks(spec)
    assert report.events["bytes sent in bulk"] == x_bytes * len(cut.slices)
    groups = sum(-(-2 * (end - first) // (4 * cut.chains)) for _, first, end, _, _ in cut.slices)
    assert report.events["wgmma"] == 4 * groups * cut.chains * spec.config.v * count


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", cases.SIZES)
def test_emulated_range_of_x(dtype, size, make_weight, rng):
    weight = make_weight(40, 512, "m2v4g64")
    x = cases.x_of_size(size, 34, 512, dtype, rng)
    y, _ = multiply(weight, x)
    assert error(y, Truth(x, weight)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_emulated_nonfinite_x_stays_in_its_row(bad, make_weight, rng):
    weight = make_weight(40, 320, "m1v4g64")
    x = rng.standard_normal((33, 320)).astype(np.float32)
    cases.check_nonfinite_stays_in_its_row(lambda x: multiply(weight, x)[0], x, bad, 1, rng)


@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g-1"])
def test_emulated_results_do_not_depend_on_the_order(config, make_weight, rng):
    weight = make_weight(130, 768, config, 2)
    x = rng.standard_normal((40, 768)).astype(np.float16)
    cut = next(c for c in candidates(weight.spec, 40, GPU) if c.splits > 1)
    steps = cut_steps(Product.of(weight.spec, 40, x.dtype, np.float32), cut)
    cases.check_the_order_does_not_matter(lambda **order: multiply(weight, x, steps=steps, **order)[0])


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_emulated_output_in_the_dtype_of_x(name, make_weight, rng):
    weight = make_weight(45, 192, "m1v4g64")
    x = rng.standard_normal((35, 192)).astype(arrays.float_dtype(name))
    cases.check_rounded_once(multiply, weight, x)


@pytest.mark.parametrize("chains", [1, 2])
def test_emulated_joins_add_splits_in_their_order(chains, make_weight, rng):
    weight = make_weight(96, 1536, "m1v4g128")
    cut = next(c for c in candidates(weight.spec, 50, GPU) if c.splits > 2 and c.chains == chains)
    x = rng.standard_normal((50, 1536)).astype(np.float16)
    cases.check_splits_are_added_in_their_order(
        KERNEL, weight, x, lambda product, scratch: dequant_wide.launches(product, cut, GPU, scratch)
    )


@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g-1", "m1v8g128"])
def test_cuts_are_found_once_for_all_n_that_take_the_same(config):
    """A plan asks for every n."""
    spec = names.spec_of((256, 1024), config)
    wide_cut._fastest.cache_clear()
    for n in range(wide_cut.MIN_N, wide_cut.MAX_N + 1):
        fastest = min(candidates(spec, n, GPU), key=lambda cut: wide_cut.estimate(cut, spec, GPU))
        assert cut_for(spec, n, GPU) == fastest
    assert wide_cut._fastest.cache_info().misses == len(wide_cut.BATCHES)


def test_other_products_and_gpus_take_the_other_forms():
    def fits_on(gpu, n, config="m1v4g128", dtype=np.float16):
        return fits(Product.of(names.spec_of((256, 1280), config), n, dtype), KNOWN[gpu])

    assert fits_on("h200", 128)
    assert fits_on("h200", 64, dtype=np.float32)
    assert not fits_on("h200", 32)
    assert not fits_on("h200", 129)
    assert not fits_on("h200", 65, dtype=np.float32)
    assert not any(fits_on(name, 64) for name, gpu in KNOWN.items() if gpu.arch != wide_cut.ARCH)
    assert not any(fits_on("h200", 64, config) for config in ("m3v8g128", "m1v5g-1", "m1v8b16g-1", "m1v4g32"))


def test_few_rows_of_w_take_the_fast_form():
    def sources(shape, n):
        product = Product.of(names.spec_of(shape, "m1v4g128"), n, np.dtype(np.float16))
        return [launch.source for launch in KERNEL.decide(product, KNOWN["h200"]).launches]

    assert sources((28672, 8192), 64) == [dequant_wide.X_SOURCE, dequant_wide.SOURCE]
    assert sources((28672, 8192), 32) == sources((1024, 4096), 64) == [dequant_fast.SOURCE]
    assert sources((1024, 4096), 65) == sources((28672, 8192), 64)


def test_more_rows_than_the_other_forms_take_are_refused_unless_this_one_fits():
    def refused(gpu, n, config="m1v4g128", dtype=np.float16):
        return KERNEL.unfit_for(Product.of(names.spec_of((256, 1280), config), n, np.dtype(dtype)), KNOWN[gpu])

    assert not refused("h200", 128)
    assert refused("h200", 129)
    assert refused("h200", 65, dtype=np.float32)
    assert refused("h200", 65, "m1v8b16g-1")
    assert refused("a100", 65)


def test_a_plan_is_ready_for_all_fewer_rows():
    product = Product.of(names.spec_of((256, 1280), "m1v4g128"), 128, np.float16)
    smaller = [KERNEL.decide(Product.of(product.spec, n, product.dtype), GPU) for n in KERNEL.batches(128)]
    names_of = {launch.instance for steps in smaller for launch in steps.launches}
    assert {name.split("<")[0] for name in names_of} == {"DequantShape", "WideShape", "WideX"}
    assert len(smaller) == 128


def test_scales_of_zero_leave_nothing_of_their_groups(make_weight, rng):
    """Also where sums are told in units of a group's scale."""
    weight = make_weight(64, 1024, "m1v4g128")
    scales = weight.scales.copy()
    scales[::3] = scales[:, 2:5] = scales[:, -1] = 0
    weight = CodebookWeight(weight.codes, weight.codebooks, scales)
    x = rng.standard_normal((100, 1024)).astype(np.float16)
    y, _ = multiply(weight, x)
    assert error(y, Truth(x, weight)) <= TOLERANCE["float16"]
    assert np.abs(y[:, ::3]).max() < 1e-9


WAIT = r"sync_block|sync_warp|wait_wgmma<\d>|wait_copies<S::ring - \d>|wait_for_sent"
SYNCHRONISATION = re.compile(rf"(?:if \([^)]*\) )?ptx::(?:{WAIT})\([^)]*\);")
TEXT = (kernels_cu.FOLDER / dequant_wide.SOURCE).read_text()


def steps_with_every_barrier(product):
    """Several chunks of x a split, with one split of K and with several."""
    cuts = [c for c in candidates(product.spec, product.n, GPU) if c.warps == 4]
    cuts = [c for c in cuts if c.chunk_blocks == c.split_blocks > 4]  # what it has of x has room for two chunks of two
    some = [next(c for c in cuts if (c.splits > 1) == split) for split in (False, True)]
    return [cut_steps(product, dataclasses.replace(cut, chunk_blocks=2)) for cut in some]


@pytest.mark.parametrize("at", [found.start() for found in SYNCHRONISATION.finditer(TEXT)])
def test_emulated_kernel_without_a_barrier_fails(at, tmp_path, make_weight, rng):
    folder = cases.without_barrier(dequant_wide.SOURCE, at, tmp_path / "kernels", SYNCHRONISATION)
    weight = make_weight(70, 768, "m1v4g128")

    x = rng.standard_normal((33, weight.shape[1])).astype(np.float16)
    truth = Truth(x, weight)

    def fails(**options):
        return cases.fails(lambda: multiply(weight, x, folder=folder, **options)[0], truth, TOLERANCE["float16"])

    failures = 0
    for steps in steps_with_every_barrier(Product.of(weight.spec, 33, x.dtype, np.float32)):
        failures += any(fails(steps=steps, order=order, seed=seed) for seed in range(2) for order in emulate.ORDERS)
        y, _ = multiply(weight, x, steps=steps, order="shuffled")
        assert error(y, truth) <= TOLERANCE["float16"]
    assert failures
