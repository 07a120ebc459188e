"""The dequantising kernel's form for Hopper as NVRTC compiles it: no GPU is needed."""

import numpy as np
import pytest
from emulator import cases
from support import sass

from codegemm.config import CodebookConfig
from codegemm.engines.cuda import compiler, dequant_wide
from codegemm.engines.cuda import dequant_wide_cut as wide_cut
from codegemm.engines.cuda.steps import X_TYPES
from codegemm.formats.codebook import CodebookSpec

AXES = {
    "v": (4, 8, 16),
    "m": (1, 2),
    "b": (8, 4, 2),
    "phases": (1, 0),
    "n": wide_cut.BATCHES,
    "x": tuple(X_TYPES.values()),
    "chains": (2, 1),
}


def spec_of(case):
    """A weight that the instance multiplies."""
    v = case["v"]
    config = CodebookConfig(v=v, m=case["m"], b=case["b"], g=16 * v if case["phases"] else -1)
    return CodebookSpec(32, 64 * v, config, (32,))


def possible(case):
    if not set(AXES) <= set(case):
        return True
    if case["x"] != "Half" and case["n"] > wide_cut.MAX_SCALED_N:
        return False
    return case["chains"] in wide_cut.chains(spec_of(case))


CASES = cases.covering(AXES, 60 if cases.ALL else 0, possible)


def key_of(case):
    return dequant_wide.SOURCE, f"WideShape<{', '.join(str(case[name]) for name in AXES)}>", wide_cut.ARCH


KERNELS = list(dict.fromkeys(map(key_of, CASES)))


@pytest.mark.parametrize("case", CASES, ids=cases.name_of)
def test_compiled_kernels_keep_to_their_budgets(case, cubins):
    sass.check_budgets(cubins[key_of(case)], 32 * wide_cut.most_warps(spec_of(case), case["chains"]))


@pytest.mark.parametrize("x", X_TYPES.values())
def test_compiled_arrangement_of_x_keeps_to_its_budget(x, tmp_path):
    path = sass.compile_one(dequant_wide.X_SOURCE, f"WideX<16, 64, {x}>", wide_cut.ARCH, tmp_path)
    sass.check_budgets(path, 32 * dequant_wide.X_WARPS)


# Instructions of a k block a lookup, at most. Of v=4 a lookup takes 2 wavefronts and its part of x 2 (one chain, n=64)
# or more: time to issue 16 instructions; of v=8 twice that.
@pytest.mark.parametrize(
    ("config", "n", "chains", "most"),
    [
        ("m1v4g128", 64, 2, 9), ("m1v4g128", 64, 1, 12), ("m1v4g128", 128, 1, 12), ("m1v4g128", 128, 2, 12),
        ("m2v8g128", 64, 2, 12),
    ],
)  # fmt: skip
def test_compiled_loop_is_a_permute_a_load_moves_and_wgmma(config, n, chains, most, tmp_path):
    config = CodebookConfig.parse(config)
    path = tmp_path / "cubin"
    values = f"{config.v}, {config.m}, {config.b}, 1, {n}, Half, {chains}"
    cubin, log = compiler.compile_instance(dequant_wide.SOURCE, f"WideShape<{values}>", wide_cut.ARCH)
    assert "serialized" not in log
    path.write_bytes(cubin)
    products = config.v * config.m * chains
    loop = sass.smallest_loop(path, "HGMMA", products)
    assert loop["HGMMA"] == products
    lookups = 8 * config.m * chains
    assert lookups < loop["LDS"] <= lookups + config.m + 3  # beside lookups codes, and what waits for those
    assert loop["PRMT"] == lookups
    # A beginning and a wait for each stage: were products done one by one, there would be more.
    assert loop["WARPGROUP"] == 2 * products // (2 if config.v > 4 else chains)
    assert loop.total() <= most * lookups, loop
    assert np.all([sass.resources(path)[name] == 0 for name in ("STACK", "LOCAL")])
