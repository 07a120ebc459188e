"""The CUDA kernels of the QuIP# baseline as NVRTC compiles them for every architecture: no GPU is needed."""

import os

import pytest
import sass

from codegemm.baselines.cuda import quip
from codegemm.engines.cuda import compiler, rotation
from codegemm.engines.cuda.steps import X_TYPES

PRODUCTS = [(quip.SOURCE, f"quip<{bits}, {groups}>") for bits in (2, 3, 4) for groups in (1, 2, 3)]
OTHERS = [(quip.SOURCE, f"dequantize_e8p<{bits}>") for bits in (2, 3, 4)] + [
    (rotation.SOURCE, f"rotate_{side}<{x}, {vector}>")
    for side in ("in", "out")
    for x in X_TYPES.values()
    for vector in ("Half", "Float")
]


def instances():
    """(source, instance, architecture): products on all architectures, what is simpler on one in turns."""
    everywhere = PRODUCTS + (OTHERS if os.environ.get("CODEGEMM_TEST_ALL") else [])
    all_architectures = [(*kernel, arch) for kernel in everywhere for arch in compiler.ARCHITECTURES]
    turns = zip(OTHERS, 3 * compiler.ARCHITECTURES)
    return list(dict.fromkeys(all_architectures + [(*kernel, arch) for kernel, arch in turns]))


INSTANCES = instances()


def turns_of(bits, groups):
    """Steps whose codes a warp has asked for at once, as in quip.cu."""
    return 1 if bits > 2 and groups > 2 else 2


@pytest.fixture(scope="module")
def cubins(tmp_path_factory):
    """Their paths, by source, instance and architecture."""
    return sass.compile_all(INSTANCES, tmp_path_factory.mktemp("cubins"))


@pytest.mark.parametrize("key", INSTANCES, ids=str)
def test_compiled_kernels_keep_to_their_budgets(key, cubins):
    used = sass.resources(cubins[key])
    assert used["REG"] * quip.LANES * quip.MAX_WARPS <= sass.REGISTERS
    assert used["STACK"] <= 64  # what no loop of products needs
    assert used["LOCAL"] == 0
    assert used["SHARED"] <= sass.STATIC_SHARED


@pytest.mark.parametrize("arch", compiler.ARCHITECTURES)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rotations_find_room_beside_a_product(bits, arch, cubins, tmp_path):
    rotations = [(rotation.SOURCE, f"rotate_{side}<Half, Half>", arch) for side in ("in", "out")]
    most = max(sass.resources(path)["REG"] for path in sass.compile_all(rotations, tmp_path).values())
    registers = sass.resources(cubins[quip.SOURCE, f"quip<{bits}, 1>", arch])["REG"] + most
    assert registers * quip.LANES * quip.MAX_WARPS <= sass.REGISTERS


@pytest.mark.parametrize("arch", compiler.ARCHITECTURES)
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize(("bits", "gathers"), [(2, 8), (3, 12), (4, 16)])
def test_compiled_loop_has_the_instructions_that_the_model_takes(bits, gathers, groups, arch, cubins):
    """For 16 x 64 weights: half as many mma as words for each group of columns, and those of the sum of x."""
    tiles, words, turns = quip._TOGETHER[bits], 4 if bits == 2 else 8, turns_of(bits, groups)
    mma = turns * groups * (words // 2 * tiles + 2)
    loop = sass.smallest_loop(cubins[quip.SOURCE, f"quip<{bits}, {groups}>", arch], "IMMA", mma)
    assert loop["IMMA"] == mma
    assert loop["LDS"] == turns * gathers * tiles
    assert loop["LDL"] + loop["STL"] <= (4 if (bits, groups, arch) == (2, 3, 80) else 0)  # of 350 instructions
    expected = turns * tiles * quip._INSTRUCTIONS[bits, groups]
    assert abs(loop.total() - expected) <= 0.15 * expected, loop


@pytest.mark.parametrize("arch", [90, 100, 120])
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_first_codes_are_asked_for_before_the_wait(bits, groups, arch, cubins):
    listing, _ = sass.listing_of(cubins[quip.SOURCE, f"quip<{bits}, {groups}>", arch])
    wait = next(place for place, line in enumerate(listing) if "ACQBULK" in line)
    loads = [line for line in listing[:wait] if "LDG" in line]
    tables = [line for line in loads if "CONSTANT" in line]
    codes = turns_of(bits, groups) * quip._TOGETHER[bits] * (1 if bits == 2 else 2)
    assert len(loads) - len(tables) == codes
    assert tables
