"""The CUDA kernels that dequantise as NVRTC compiles them for every architecture: no GPU is needed."""

import numpy as np
import pytest
from emulator import cases
from support import sass

from codegemm.config import CodebookConfig
from codegemm.engines.cuda import compiler, dequant_cut, dequant_dense, dequant_fast, dequant_plain
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.engines.cuda.steps import X_TYPES, Scratch
from codegemm.formats.codebook import CodebookSpec
from codegemm.kernel import Product

FAST = {
    "v": (4, 8, 16),
    "m": (1, 2, 3, 4, 8),
    "b": (8, 4, 2, 16),
    "phases": (1, 2, 4, 0),
    "n": dequant_cut.BATCHES,
    "x": tuple(X_TYPES.values()),
    "shared": ("true", "false"),
    "arch": compiler.ARCHITECTURES,
}
PLAIN = {
    "v": (3, 1, 5, 7, 12),
    "code": ("u8", "u16"),
    "n": dequant_plain.BATCHES,
    "x": tuple(X_TYPES.values()),
    "arch": compiler.ARCHITECTURES,
}
DEQUANTIZE = {
    "v": (4, 8, 16, 1, 2, 3, 12),
    "code": ("u8", "u16"),
    "x": tuple(X_TYPES.values()),
    "shared": ("true", "false"),
    "arch": compiler.ARCHITECTURES,
}


def spec_of(case):
    """A weight that the instance multiplies."""
    v, phases = case["v"], case["phases"]
    config = CodebookConfig(v=v, m=case["m"], b=case["b"], g=16 // phases * v if phases else -1)
    return CodebookSpec(32, 64 * v, config, (32,))


def instances(source, form, axes):
    """(source, instance, architecture, threads) of a covering set."""

    def possible(case):
        if case.get("b") == 16 and case.get("shared") == "true":
            return False
        if source != dequant_fast.SOURCE or not set(axes) <= set(case):
            return True
        return dequant_cut.kernel_batch(spec_of(case), case["n"], case["shared"] == "true") == case["n"]

    kernels = []
    for case in cases.covering(axes, 150 if cases.ALL else 0, possible):
        values = ", ".join(str(case[name]) for name in axes if name != "arch")
        warps = 8
        if source == dequant_fast.SOURCE:
            warps = dequant_cut.most_warps(spec_of(case), case["n"], case["shared"] == "true")
        kernels.append((source, f"{form}<{values}>", case["arch"], 32 * warps))
    return kernels


# As many threads as registers allow, x in float32, which must be scaled: the most that a thread holds.
FULL = [
    (dequant_fast.SOURCE, f"DequantShape<8, 2, 8, {phases}, 16, Float, true>", arch, 512)
    for phases in (0, 1)
    for arch in compiler.ARCHITECTURES
]
INSTANCES = [
    *FULL,
    *(key for key in instances(dequant_fast.SOURCE, "DequantShape", FAST) if key not in FULL),
    *instances(dequant_plain.SOURCE, "dequant_plain", PLAIN),
    *instances(dequant_dense.SOURCE, "dequantize", DEQUANTIZE),
]
KERNELS = [key[:3] for key in INSTANCES]


@pytest.mark.parametrize("key", INSTANCES, ids=lambda key: f"{key[1]}-{key[2]}")
def test_compiled_kernels_keep_to_their_budgets(key, cubins):
    sass.check_budgets(cubins[key[:3]], key[3])


# Lookups of a loop (of two blocks of rows and, apart, of one where a warp may have two) and instructions a lookup at
# most. Of v=4 a lookup with its part of x takes 2.5 (n=16) or 4 (n=32)
# wavefronts, of v=8 5 or 6: time to issue 10, 16, 20 and 24 instructions.
@pytest.mark.parametrize(
    ("config", "n", "lookups", "most"),
    [("m1v4g128", 16, 48, 9), ("m2v8g128", 16, 32, 9), ("m1v4g128", 32, 48, 13), ("m2v8g128", 32, 32, 13)],
)
@pytest.mark.parametrize("arch", [80, 90, 120])
def test_compiled_loop_is_a_permute_a_load_and_mma(config, n, lookups, most, arch, tmp_path):
    spec = CodebookSpec(28672, 8192, CodebookConfig.parse(config), (28672,))
    cut = dequant_cut.cut_for(spec, n, KNOWN["h200"])
    launch = dequant_fast.launch(Product.of(spec, n, np.float16), cut, KNOWN["h200"], Scratch())
    loop = sass.smallest_loop(sass.compile_one(launch.source, launch.instance, arch, tmp_path), "HMMA", lookups)
    assert loop["PRMT"] == lookups
    assert loop["HMMA"] == lookups * spec.config.v // 4 * (n // 16)
    fragments = spec.config.v * (n // 16) * dequant_cut.warp_blocks(spec, n, True)  # read by each form of the loop
    assert loop["LDS"] == lookups + fragments
    assert loop.total() <= most * lookups, loop
