"""The CUDA kernels of the QuIP# baseline as NVRTC compiles them for every architecture: no GPU is needed."""

import os

import pytest
import sass

from codegemm.baselines.cuda import quip
from codegemm.engines.cuda import compiler, rotation
from codegemm.engines.cuda.steps import X_TYPES

PRODUCTS = [(quip.SOURCE, f"quip<{bits}>") for bits in (2, 3, 4)]
OTHERS = [(quip.SOURCE, f"dequantize_e8p<{bits}>") for bits in (2, 3, 4)] + [
    (rotation.SOURCE, f"rotate_{side}<{x}>") for side in ("in", "out") for x in X_TYPES.values()
]


def instances():
    """(source, instance, architecture): products on all architectures, what is simpler on one in turns."""
    everywhere = PRODUCTS + (OTHERS if os.environ.get("CODEGEMM_TEST_ALL") else [])
    all_architectures = [(*kernel, arch) for kernel in everywhere for arch in compiler.ARCHITECTURES]
    turns = zip(OTHERS, 2 * compiler.ARCHITECTURES)
    return list(dict.fromkeys(all_architectures + [(*kernel, arch) for kernel, arch in turns]))


INSTANCES = instances()


@pytest.fixture(scope="module")
def cubins(tmp_path_factory):
    """Their paths, by source, instance and architecture."""
    return sass.compile_all(INSTANCES, tmp_path_factory.mktemp("cubins"))


@pytest.mark.parametrize("key", INSTANCES, ids=str)
def test_compiled_kernels_keep_to_their_budgets(key, cubins):
    sass.check_budgets(cubins[key], 1024)


@pytest.mark.parametrize("arch", compiler.ARCHITECTURES)
@pytest.mark.parametrize(("bits", "gathers"), [(2, 4), (3, 8), (4, 8)])
def test_compiled_loop_has_the_instructions_that_the_model_takes(bits, gathers, arch, cubins):
    """For 16 x 64 weights: as many mma as words, each gathered once."""
    tiles = quip._TOGETHER[bits]
    loop = sass.smallest_loop(cubins[quip.SOURCE, f"quip<{bits}>", arch], "HMMA", gathers * tiles)
    assert loop["HMMA"] == loop["LDS"] == gathers * tiles
    assert abs(loop.total() / tiles - quip._INSTRUCTIONS[bits]) <= 0.06 * quip._INSTRUCTIONS[bits], loop
