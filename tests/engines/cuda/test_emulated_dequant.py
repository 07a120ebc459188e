"""The CUDA dequantising kernel in the emulator, its fast and its plain form: results and counters."""

import dataclasses
import random

import numpy as np
import pytest
from emulator import cases, emulate
from emulator.cases import COMMON, error, product_of, spec_of
from support import errors

from codegemm import arrays
from codegemm.engines.cuda import dequant_fast, rows
from codegemm.engines.cuda import dequant_layout as layout
from codegemm.engines.cuda import dequant_plain as plain
from codegemm.engines.cuda.dequant import Dequant
from codegemm.engines.cuda.dequant_cut import candidates, cut_for, fits
from codegemm.kernel import Product
from codegemm.testing.truth import Truth

KERNEL = Dequant()
GPU = dataclasses.replace(emulate.SMALL_GPU, arch=80)  # whose products take the fast form, not that for Hopper
GPUS = {"data centre": GPU, "desktop": emulate.DESKTOP_GPU}
FAST = {
    "v": (4, 8, 16),
    "m": (1, 2, 3, 5),
    "b": (8, 2, 4, 6, 12),
    "group_vectors": (32, 4, 1, 5, 12, 25, -1),
    "n": (1, 8, 9, 17, 64),
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
    return fits(spec_of({"m": 1, "b": 8, "rows": 1, "parts": 1} | case))


FAST_CASES = cases.covering(FAST, 200 if cases.ALL else 0, lambda case: is_fast(case) is not False)
PLAIN_CASES = cases.covering(PLAIN, 100 if cases.ALL else 0, lambda case: is_fast(case) is not True)


def cut_of(case):
    """Of the fast form."""
    spec, gpu = spec_of(case), GPUS[case["gpu"]]
    best = cut_for(spec, case["n"], gpu)
    if case["cut"] == "best":
        return best
    return random.Random(case["seed"]).choice([c for c in candidates(spec, case["n"], gpu) if c.shared == best.shared])


def steps_of(case):
    product, gpu = product_of(case), GPUS[case["gpu"]]
    if fits(product.spec):
        return emulate.cut_steps(dequant_fast, product, cut_of(case), gpu)
    return KERNEL.decide(product, gpu)


def run(case, make_weight, rng):
    """The emulated product, its float64 truth, the report and the weight."""
    weight, x = cases.operands(case, make_weight, rng)
    steps = steps_of(case)
    y, [report] = emulate.multiply(KERNEL, weight, x, steps=steps, order=case["order"], seed=case["seed"])
    return y, Truth(x, weight), report, weight


@pytest.mark.parametrize("case", FAST_CASES, ids=cases.name_of)
def test_emulated_products_and_their_counters(case, compiled, make_weight, rng):
    y, truth, report, weight = run(case, make_weight, rng)
    assert error(y, truth) <= errors.of_dequant(case["m"], case["dtype"])

    spec, cut = weight.spec, cut_of(case)
    blocks, pieces = rows.row_blocks(spec), 2 if spec.config.v == 16 else 1
    lookups = report.of("look_up", space="shared" if cut.shared else "global")
    assert lookups.instructions == cut.k_blocks * 16 * spec.config.m * pieces * blocks * cut.passes
    if cut.shared:
        assert lookups.wavefronts == lookups.instructions * (2 if spec.config.v == 4 else 4)
        copies = report.of("copy_codebooks", "store")
        assert copies.wavefronts == copies.least_wavefronts
    fragments = report.of("load_fragment")
    assert fragments.wavefronts == (2 if cut.batch == 8 else 4) * fragments.instructions
    codes = report.of("load_codes", space="global")
    assert codes.sectors == codes.least_sectors
    assert codes.bytes == cut.k_blocks * spec.config.m * blocks * layout.block_bytes(spec) * cut.passes
    scales = report.of("load_scales", space="global")
    assert scales.sectors == scales.least_sectors
    stores = report.of("store_item", "store")
    assert stores.wavefronts == stores.least_wavefronts


@pytest.mark.parametrize("case", PLAIN_CASES, ids=cases.name_of)
def test_emulated_plain_products(case, compiled, make_weight, rng):
    y, truth, report, weight = run(case, make_weight, rng)
    assert error(y, truth) <= 1e-6
    assert (
        report.events["block barrier"]
        == rows.row_blocks(weight.spec) * plain.cut_for(weight.spec, len(y), GPUS[case["gpu"]]).splits
    )


@pytest.mark.parametrize("n", [1, 16, 40, 64])
@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g-1", "m1v3g-1"])
def test_emulated_joins_make_as_many_trips_as_predicted(config, n, make_weight, rng):
    """In order, the last split's warps add all of their blocks of rows, for all passes' rows of x."""
    weight = make_weight(96, 1536, config)
    x = rng.standard_normal((n, weight.shape[1])).astype(np.float16)
    _, [report] = emulate.multiply(KERNEL, weight, x, gpu=GPU)
    if fits(weight.spec):
        cut = cut_for(weight.spec, n, GPU)
        assert cut.passes == (1 if n <= 32 else 2)
        blocks = [len(range(first + w, end, cut.warps)) for _, first, end, _, _ in cut.slices for w in range(cut.warps)]
    else:
        cut, blocks = plain.cut_for(weight.spec, n, GPU), [1] * rows.row_blocks(weight.spec)
    assert cut.splits > 1
    assert report.events["trip"] == sum(rows.join_trips(cut.splits, n, count) for count in blocks)


@pytest.mark.parametrize("cluster", [2, 5, 8])
@pytest.mark.parametrize(
    ("config", "n", "dtype"),
    [("m1v4g128", 5, "float16"), ("m2v8g-1", 20, "float16"), ("m1v4g128", 40, "float16"), ("m1v4g128", 9, "bfloat16")],
)
def test_emulated_clusters(config, n, dtype, cluster, make_weight, rng):
    """All splits of a slice, with several rows of x and passes over W, parts, and rows that fill no block."""
    weight = make_weight(70, 64 * 8 * cluster, config, 2)
    gpu = dataclasses.replace(
        emulate.SMALL_GPU, multiprocessors=64, clusters=tuple(64 // size for size in range(1, 17))
    )
    product = Product.of(weight.spec, n, arrays.float_dtype(dtype), np.float32)
    cut = next(c for c in candidates(weight.spec, n, gpu) if c.cluster == cluster)
    # More blocks of rows than a warp has, and fewer than the cluster; k blocks for some of the warps, and then for all.
    cut = dataclasses.replace(cut, warps=4, slices=rows.slices(weight.spec, 3), chunk_blocks=3)
    x = rng.standard_normal((n, weight.shape[1])).astype(product.dtype)
    results = []
    for order in emulate.ORDERS:
        steps = emulate.cut_steps(dequant_fast, product, cut, gpu)
        y, [report] = emulate.multiply(KERNEL, weight, x, steps=steps, order=order)
        assert error(y, Truth(x, weight)) <= errors.of_dequant(weight.config.m, dtype)
        eights = sum(-(-min(cut.batch, n - first) // 8) for first in range(0, n, cut.batch))  # of rows of x
        assert report.events["sent"] == cut.splits * 32 * sum(rows.part_blocks(weight.spec)) * 8 * eights
        assert "atomic" not in report.events
        results.append(y)
    assert all(np.array_equal(result, results[0]) for result in results)
