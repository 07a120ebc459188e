"""The CUDA kernels of the QuIP# baseline as NVRTC compiles them for every architecture: no GPU is needed."""

import itertools

import pytest
from emulator import cases
from support import sass

from codegemm.baselines.cuda import quip
from codegemm.engines.cuda import compiler, rotation
from codegemm.engines.cuda.steps import X_TYPES

OTHERS = [(quip.SOURCE, f"dequantize_e8p<{bits}>") for bits in (2, 3, 4)] + [
    (rotation.SOURCE, f"rotate_{side}<{x}, {vector}>")
    for side in ("in", "out")
    for x in X_TYPES.values()
    for vector in ("Half", "Float")
]


def products():
    """(bits, groups, architecture): all, or every two of them."""
    found = itertools.product(range(3), range(3), range(len(compiler.ARCHITECTURES)))
    return [(2 + b, 1 + g, compiler.ARCHITECTURES[a]) for b, g, a in found if cases.ALL or (b + g + a) % 3 == 0]


PRODUCTS = products()


def product_of(bits, groups, arch):
    return quip.SOURCE, f"quip<{bits}, {groups}>", arch


def instances():
    """(source, instance, architecture): beside products what is simpler, on one architecture in turns, or on all."""
    others = list(zip(OTHERS, 3 * compiler.ARCHITECTURES))
    if cases.ALL:
        others = itertools.product(OTHERS, compiler.ARCHITECTURES)
    return [product_of(*product) for product in PRODUCTS] + [(*kernel, arch) for kernel, arch in others]


KERNELS = instances()


def turns_of(bits, groups):
    """Steps whose codes a warp has asked for at once, as in quip.cu."""
    return 1 if bits > 2 and groups > 2 else 2


@pytest.mark.parametrize("key", KERNELS, ids=str)
def test_compiled_kernels_keep_to_their_budgets(key, cubins):
    used = sass.resources(cubins[key])
    assert used["REG"] * quip.LANES * quip.MAX_WARPS <= sass.REGISTERS
    assert used["STACK"] <= 64  # what no loop of products needs
    assert used["LOCAL"] == 0
    assert used["SHARED"] <= sass.STATIC_SHARED


@pytest.mark.parametrize(("bits", "arch"), [(bits, arch) for bits, groups, arch in PRODUCTS if groups == 1])
def test_rotations_find_room_beside_a_product(bits, arch, cubins, tmp_path):
    rotations = [(rotation.SOURCE, f"rotate_{side}<Half, Half>", arch) for side in ("in", "out")]
    most = max(sass.resources(path)["REG"] for path in sass.compile_all(rotations, tmp_path).values())
    registers = sass.resources(cubins[product_of(bits, 1, arch)])["REG"] + most
    assert registers * quip.LANES * quip.MAX_WARPS <= sass.REGISTERS


@pytest.mark.parametrize(("bits", "groups", "arch"), PRODUCTS)
def test_compiled_loop_has_the_instructions_that_the_model_takes(bits, groups, arch, cubins):
    """For 16 x 64 weights: half as many mma as words for each group of columns, and those of the sum of x."""
    tiles, words, turns = quip._TOGETHER[bits], 4 if bits == 2 else 8, turns_of(bits, groups)
    mma = turns * groups * (words // 2 * tiles + 2)
    loop = sass.smallest_loop(cubins[product_of(bits, groups, arch)], "IMMA", mma)
    assert loop["IMMA"] == mma
    assert loop["LDS"] == turns * 4 * bits * tiles
    assert loop["LDL"] + loop["STL"] <= (4 if (bits, groups, arch) == (2, 3, 80) else 0)  # of 350 instructions
    expected = turns * tiles * quip._INSTRUCTIONS[bits, groups]
    assert abs(loop.total() - expected) <= 0.15 * expected, loop


@pytest.mark.parametrize(("bits", "groups", "arch"), [product for product in PRODUCTS if product[-1] >= 90])
def test_first_codes_are_asked_for_before_the_wait(bits, groups, arch, cubins):
    listing, _ = sass.listing_of(cubins[product_of(bits, groups, arch)])
    wait = next(place for place, line in enumerate(listing) if "ACQBULK" in line)
    loads = [line for line in listing[:wait] if "LDG" in line]
    tables = [line for line in loads if "CONSTANT" in line]
    codes = turns_of(bits, groups) * quip._TOGETHER[bits] * (1 if bits == 2 else 2)
    assert len(loads) - len(tables) == codes
    assert tables
