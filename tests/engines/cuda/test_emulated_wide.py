"""The dequantising kernel's form for Hopper in the emulator: results and counters."""

import dataclasses
import random

import numpy as np
import pytest
from emulator import cases, emulate
from emulator.cases import COMMON, error, product_of, spec_of
from support import errors

from codegemm import arrays
from codegemm.engines.cuda import dequant_layout as layout
from codegemm.engines.cuda import dequant_wide, rows
from codegemm.engines.cuda import dequant_wide_cut as wide_cut
from codegemm.engines.cuda.dequant import Dequant
from codegemm.engines.cuda.dequant_wide_cut import candidates, cut_for, fits
from codegemm.formats.codebook import CodebookWeight
from codegemm.kernel import Product
from codegemm.testing.truth import Truth

KERNEL, GPU = Dequant(), emulate.SMALL_GPU
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
    """Whether this form multiplies the case, or True while too little is known of it."""
    if not {"v", "m", "b", "group_vectors", "n", "dtype", "rows", "groups"} <= set(case):
        return True
    return fits(product_of({"parts": 1} | case), GPU)


CASES = cases.covering(AXES, 100 if cases.ALL else 0, possible)


def cut_of(case):
    best = cut_for(spec_of(case), case["n"], GPU)
    if case["cut"] == "best":
        return best
    return random.Random(case["seed"]).choice(candidates(spec_of(case), case["n"], GPU))


def steps_of(case):
    return emulate.cut_steps(dequant_wide, product_of(case), cut_of(case))


@pytest.mark.parametrize("case", CASES, ids=cases.name_of)
def test_emulated_products_and_their_counters(case, compiled, make_weight, rng):
    weight, x = cases.operands(case, make_weight, rng)
    steps = steps_of(case)
    y, [_, report] = emulate.multiply(KERNEL, weight, x, steps=steps, order=case["order"], seed=case["seed"])
    assert error(y, Truth(x, weight)) <= errors.of_dequant(case["m"], case["dtype"])

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
    assert report.events["wgmma"] == 4 * groups * cut.chains * spec.config.v * layout.k_blocks(spec)


def test_scales_of_zero_leave_nothing_of_their_groups(make_weight, rng):
    """Also where sums are told in units of a group's scale."""
    weight = make_weight(64, 1024, "m1v4g128")
    scales = weight.scales.copy()
    scales[::3] = scales[:, 2:5] = scales[:, -1] = 0
    weight = CodebookWeight(weight.codes, weight.codebooks, scales)
    x = rng.standard_normal((100, 1024)).astype(np.float16)
    product = Product.of(weight.spec, 100, x.dtype, np.float32)
    steps = emulate.cut_steps(dequant_wide, product, cut_for(weight.spec, 100, GPU))
    y, _ = emulate.multiply(KERNEL, weight, x, steps=steps)
    assert error(y, Truth(x, weight)) <= errors.of_dequant(1, "float16")
    assert np.abs(y[:, ::3]).max() < 1e-9


@pytest.mark.parametrize(
    ("config", "n", "dtype", "chains", "cluster"),
    [
        ("m1v4g128", 64, "float16", 1, 5), ("m1v4b4g-1", 100, "float16", 2, 3), ("m2v8g-1", 35, "float16", 2, 2),
        ("m2v8g128", 40, "bfloat16", 1, 2),
    ],
)  # fmt: skip
def test_emulated_clusters(config, n, dtype, chains, cluster, make_weight, rng):
    """All splits of a slice, with parts, rows that fill no block, and blocks that none of a thread block's owns."""
    weight = make_weight(70, 128 * 4 * cluster, config, 2)
    gpu = dataclasses.replace(GPU, multiprocessors=64, clusters=tuple(64 // size for size in range(1, 17)))
    product = Product.of(weight.spec, n, arrays.float_dtype(dtype), np.float32)
    cut = next(c for c in candidates(weight.spec, n, gpu) if (c.cluster, c.chains) == (cluster, chains))
    x = rng.standard_normal((n, weight.shape[1])).astype(product.dtype)
    results = []
    for order in emulate.ORDERS:
        steps = emulate.cut_steps(dequant_wide, product, cut, gpu)
        y, [_, report] = emulate.multiply(KERNEL, weight, x, steps=steps, order=order)
        assert error(y, Truth(x, weight)) <= errors.of_dequant(weight.config.m, dtype)
        assert report.events["sent"] == cut.splits * 32 * sum(rows.part_blocks(weight.spec)) * 8 * -(-n // 8)
        assert "atomic" not in report.events
        results.append(y)
    assert all(np.array_equal(result, results[0]) for result in results)
