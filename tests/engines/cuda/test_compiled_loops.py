"""The instructions of the CUDA kernels as NVRTC compiles them, above all of their loops: no GPU is needed."""

import itertools
import re

import numpy as np
import pytest
from emulator import cases
from support import sass

from codegemm import kernels_cu
from codegemm.baselines.cuda import aqlm, lutgemm, qtip, quip
from codegemm.engines.cuda import compiler, dequant_cut, dequant_fast, dequant_wide, psumbook, rotation
from codegemm.engines.cuda.dequant_wide_cut import ARCH
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.engines.cuda.psumbook_cut import cut_for
from codegemm.engines.cuda.steps import Scratch
from codegemm.formats.codebook_config import CodebookConfig
from codegemm.formats.format import spec_of
from codegemm.kernel import Product

H200 = KNOWN["h200"]
SHAPE = 28672, 8192


EACH_KIND = (80, 90, 120) if cases.ALL else (90,)  # of architectures, in which the compiler differs

# Of vector lengths with architectures, codebooks and group sizes: all, or for one kind every two of them.
PSUMBOOK = [
    (v, arch, m, g)
    for (a, (v, arch)), m, (i, g) in itertools.product(
        enumerate([(4, 80), (4, 90), (4, 100), (4, 120), (8, 90), (16, 90)]), (1, 2, 3, 4), enumerate((128, 256, -1))
    )
    if cases.ALL or ((a + m + i) % 3 == 0 and arch in EACH_KIND)
]


@pytest.mark.parametrize(("v", "arch", "m", "g"), cases.some(PSUMBOOK, 5))
def test_psumbooks_loop_has_at_most_four_instructions_a_lookup(v, arch, m, g):
    spec = spec_of(SHAPE, f"m{m}v{v}g{g}")
    cut = cut_for(spec, 1, H200)
    launch = psumbook.launch(Product.of(spec, 1, np.float16), cut, H200, Scratch())
    lookups = 32 * cut.rows
    loop = sass.smallest_loop(sass.cubin_of(launch.source, launch.instance, arch), "LDS", lookups)
    # Where there are clusters, what the last unit does is in the loop, too: it sends sums in place of storing them.
    sends = arch >= 90
    assert lookups <= loop["PRMT"] <= lookups + 2 * sends
    assert loop.total() <= 4 * lookups + 28 * sends, loop


# Instructions a lookup at most, of the loop over a span's k blocks but the first. Of v=4 a lookup with its part of x
# takes 2.25 wavefronts (n=8), 2.5 (n=16) or 3 (n=32), of v=8 twice as many or a few more: time to issue four times as
# many.
@pytest.mark.parametrize(
    ("config", "n", "most"),
    cases.some([
        ("m1v4g128", 8, 6.5), ("m2v8g128", 8, 6), ("m2v8g128", 16, 6.5), ("m1v4g128", 16, 5), ("m1v4g128", 32, 6.5),
        ("m2v8g128", 32, 8.5),
    ]),
)  # fmt: skip
@pytest.mark.parametrize("arch", EACH_KIND)
def test_dequants_loop_is_a_permute_a_load_and_mma(config, n, most, arch):
    spec = spec_of(SHAPE, config)
    v, m = spec.config.v, spec.config.m
    launch = dequant_fast.launch(Product.of(spec, n, np.float16), dequant_cut.cut_for(spec, n, H200), H200, Scratch())
    lookups = 16 * m * dequant_cut.warp_blocks(spec, n, True)
    products = lookups // m * (v // 4) * n // 16  # of the sum of a pair of codebooks
    loop = sass.smallest_loop(sass.cubin_of(launch.source, launch.instance, arch), "HMMA", products)
    assert loop["PRMT"] == lookups
    assert loop["HMMA"] == products
    assert loop["HADD2"] == (2 * lookups if m == 2 else 0) * v // 8
    assert loop["LDS"] == lookups + v * max(1, n // 16)  # and fragments of x
    assert loop.total() <= most * lookups, loop


# Instructions of a k block a lookup, at most. Of v=4 a lookup takes 2 wavefronts and its part of x 2 (one chain, n=64)
# or more: time to issue 16 instructions; of v=8 twice that.
@pytest.mark.parametrize(
    ("config", "n", "chains", "most"),
    cases.some([
        ("m1v4g128", 64, 2, 9), ("m1v4g128", 64, 1, 12), ("m1v4g128", 128, 1, 12), ("m1v4g128", 128, 2, 12),
        ("m2v8g128", 64, 2, 8),
    ]),
)  # fmt: skip
def test_dequants_loop_for_hopper_is_a_permute_a_load_moves_and_wgmma(config, n, chains, most, tmp_path):
    config = CodebookConfig.parse(config)
    path = tmp_path / "cubin"
    values = f"{config.v}, {config.m}, {config.b}, 1, {n}, Half, {chains}"
    cubin, log = compiler.compile_instance(dequant_wide.SOURCE, f"WideShape<{values}>", ARCH)
    assert "serialized" not in log
    path.write_bytes(cubin)
    products = config.v * chains  # of the sum of two codebooks
    loop = sass.smallest_loop(path, "HGMMA", products)
    assert loop["HGMMA"] == products
    lookups = 8 * config.m * chains
    assert lookups < loop["LDS"] <= lookups + config.m + 3  # beside lookups codes, and what waits for those
    assert loop["PRMT"] == lookups
    # A beginning and a wait for each stage: were products done one by one, there would be more.
    assert loop["WARPGROUP"] == 2 * products // (2 if config.v > 4 else chains)
    assert loop.total() <= most * lookups, loop
    assert np.all([sass.resources(path)[name] == 0 for name in ("STACK", "LOCAL")])


@pytest.mark.parametrize("arch", EACH_KIND)
@pytest.mark.parametrize(("v", "m", "code"), cases.some([(8, 1, "u16"), (16, 1, "u16"), (8, 2, "u8"), (8, 1, "u8")]))
def test_aqlms_loop_waits_for_centroids_and_not_for_instructions(v, m, code, arch):
    """A clock has four instructions. 16 bytes a lane take four clocks from shared memory, and over twenty from L2."""
    loop = sass.smallest_loop(sass.cubin_of(aqlm.SOURCE, f"aqlm<{v}, {m}, {code}, Half>", arch), "HFMA2", 4)
    if code == "u8":
        assert loop["LDS"] % (m + 1) == loop["LDG"] == 0  # of x once for m centroids
        assert loop.total() / 4 <= 4 * loop["LDS"], loop
    else:
        assert loop["LDG"] == loop["LDS"]
        assert loop.total() <= 18 * loop["LDG"], loop


@pytest.mark.parametrize(("v", "words"), cases.some([(8, 4), (8, 1), (7, 2), (8, 0)]))
@pytest.mark.parametrize("arch", EACH_KIND)
def test_lutgemms_loops_have_the_instructions_that_the_model_takes(v, words, arch):
    """Of 64 rows, two lookups a code, which conflicts of banks make take longer than the instructions of whole groups;
    of tables, twice as many entries an addition, and as many stores as bytes need."""
    path = sass.cubin_of(lutgemm.SOURCE, f"lutgemm<{v}, {words}, Half>", arch)
    loop, runs = sass.smallest_loop(path, "LDS", 32), lutgemm.MAX_WORDS // max(words, 1)
    assert loop["LDS"] == 32
    assert loop["LDL"] + loop["STL"] == 0
    expected = runs * lutgemm._INSTRUCTIONS[words]
    assert abs(loop.total() - expected) <= 0.25 * expected, loop
    assert words < 2 or loop.total() / 4 <= 32 * lutgemm._CONFLICTS[v]
    tables = sass.smallest_loop(path, "STS", 1)
    assert tables["STS"] == 1 << v >> 6
    fixed, each = lutgemm._TABLE_INSTRUCTIONS
    assert abs(tables.total() - (fixed + each * v)) <= 0.2 * tables.total(), tables


# Of QuIP#'s bits, groups and architectures: all, or every two of them.
QUIP = [
    (2 + b, 1 + g, arch)
    for b, g, (a, arch) in itertools.product(range(3), range(3), enumerate(compiler.ARCHITECTURES))
    if cases.ALL or ((b + g + a) % 3 == 0 and arch in EACH_KIND)
]


def quip_of(bits, groups, arch):
    return sass.cubin_of(quip.SOURCE, f"quip<{bits}, {groups}>", arch)


def turns_of(bits, groups):
    """Steps whose codes a warp has asked for at once, as in quip.cu."""
    return 1 if bits > 2 and groups > 2 else 2


@pytest.mark.parametrize(("bits", "arch"), [(bits, arch) for bits, groups, arch in QUIP if groups == 1])
def test_rotations_find_room_beside_a_product(bits, arch):
    rotations = [sass.cubin_of(rotation.SOURCE, f"rotate_{side}<Half, Half>", arch) for side in ("in", "out")]
    most = max(sass.resources(path)["REG"] for path in rotations)
    registers = sass.resources(quip_of(bits, 1, arch))["REG"] + most
    assert registers * quip.LANES * quip.MAX_WARPS <= sass.REGISTERS


@pytest.mark.parametrize(("bits", "groups", "arch"), QUIP)
def test_quips_loop_has_the_instructions_that_the_model_takes(bits, groups, arch):
    """For 16 x 64 weights: half as many mma as words for each group of columns, and those of the sum of x."""
    tiles, words, turns = quip._TOGETHER[bits], 4 if bits == 2 else 8, turns_of(bits, groups)
    mma = turns * groups * (words // 2 * tiles + 2)
    loop = sass.smallest_loop(quip_of(bits, groups, arch), "IMMA", mma)
    assert loop["IMMA"] == mma
    assert loop["LDS"] == turns * 4 * bits * tiles
    assert loop["LDL"] + loop["STL"] <= (4 if (bits, groups, arch) == (2, 3, 80) else 0)  # of 350 instructions
    expected = turns * tiles * quip._INSTRUCTIONS[bits, groups]
    assert abs(loop.total() - expected) <= 0.15 * expected, loop


@pytest.mark.parametrize(("bits", "groups", "arch"), [product for product in QUIP if product[-1] >= 90])
def test_quips_first_codes_are_asked_for_before_the_wait(bits, groups, arch):
    listing, _ = sass.listing_of(quip_of(bits, groups, arch))
    wait = next(place for place, line in enumerate(listing) if "ACQBULK" in line)
    loads = [line for line in listing[:wait] if "LDG" in line]
    tables = [line for line in loads if "CONSTANT" in line]
    codes = turns_of(bits, groups) * quip._TOGETHER[bits] * (1 if bits == 2 else 2)
    assert len(loads) - len(tables) == codes
    assert tables


@pytest.mark.parametrize(("bits", "groups"), [(2, 1), (3, 2), (4, 1)])
@pytest.mark.parametrize("arch", EACH_KIND)
def test_qtips_loop_has_the_instructions_that_the_model_takes(bits, groups, arch):
    """For 32 x 32 weights: 16 loads from the table, each of which has a product, a shift, two logical operations and,
    three times of four, a shift that makes its state."""
    turns = 4 if bits == 2 else 2
    loop = sass.smallest_loop(sass.cubin_of(qtip.SOURCE, f"qtip<{bits}, {groups}>", arch), "HMMA", turns * groups * 4)
    assert loop["HMMA"] == turns * groups * 4
    assert loop["LDS"] == turns * 16
    assert loop["SHFL"] == turns * bits
    assert loop["LOP3"] <= turns * 40
    assert loop["LDL"] + loop["STL"] == 0
    expected = turns * qtip._INSTRUCTIONS[bits, groups]
    assert abs(loop.total() - expected) <= 0.1 * expected, loop


@pytest.mark.parametrize("arch", compiler.ARCHITECTURES if cases.ALL else (80, 90))
@pytest.mark.parametrize(
    ("source", "instance"),
    cases.some(
        [
            ("psumbook.cu", "psumbook<4, 1, 8, 1, 1, Half, 2>"),
            ("dequant.cu", "DequantShape<4, 1, 8, 1, 16, Half, true>"),
            ("dequant_plain.cu", "dequant_plain<3, u8, 16, Half>"),
            ("dequant.cu", "DequantShape<8, 2, 8, 1, 16, Float, true>"),
            ("lutgemm.cu", "lutgemm<8, 4, Half>"),
        ]
    ),
)
def test_all_loads_of_a_trip_come_before_its_first_addition(source, instance, arch):
    """A fence before the count and an invalidation of L1 after it: once, whatever the number of splits."""
    listing, _ = sass.listing_of(sass.cubin_of(source, instance, arch))
    [fence] = [place for place, line in enumerate(listing) if "MEMBAR" in line and "GPU" in line]
    invalidation = next(place for place, line in enumerate(listing) if "CCTL" in line and place > fence)
    loads = [place for place, line in enumerate(listing) if "LDG.E.128.STRONG.GPU" in line]
    # A lane's: of eight splits or more, of more than four, and of fewer, with several rows of x at once.
    forms, in_flight = 3, 16
    assert len(loads) == forms * in_flight
    assert fence < invalidation < loads[0]
    for first in range(0, len(loads), in_flight):
        trip = listing[loads[first] : loads[first + in_flight - 1]]
        assert not any("STL" in line for line in trip)
        assert sum("FADD" in line for line in trip) <= (arch < 90)  # one slips in where registers are short


KERNELS = [
    ("psumbook.cu", "psumbook<4, 1, 8, 1, 1, Half, 2>"),
    ("dequant.cu", "DequantShape<4, 1, 8, 1, 16, Half, true>"),
    ("dequant_wide.cu", "WideShape<4, 1, 8, 1, 64, Half, 2>"),
    ("dequant_wide_x.cu", "WideX<4, 64, Half>"),
    ("dequant_plain.cu", "dequant_plain<3, u8, 4, Half>"),
    ("dequantize.cu", "dequantize<4, u8, Half, true>"),
    ("dequantize.cu", "dequantize<8, u16, Bfloat, false>"),
    ("aqlm.cu", "aqlm<8, 2, u8, Half>"),
    ("lutgemm.cu", "lutgemm<8, 4, Half>"),
    ("lutgemm.cu", "lutgemm<4, 0, Float>"),
    ("qtip.cu", "qtip<2, 1>"),
    ("qtip.cu", "dequantize_qtip<3>"),
    ("quip.cu", "quip<2, 1>"),
    ("quip.cu", "dequantize_e8p<2>"),
    ("quip.cu", "dequantize_e8p<3>"),
    ("quip.cu", "dequantize_e8p<4>"),
    ("rotate.cu", "rotate_in<Half, Half>"),
    ("rotate.cu", "rotate_out<Half, Half>"),
    ("transformed.cu", "rotate_x<Half, Float, 1>"),
    ("transformed.cu", "rotate_x<Half, Float, 4>"),
    ("transformed.cu", "sum_groups<Half>"),
    ("transformed.cu", "finish<Half>"),
    ("bias.cu", "add_bias<Half>"),
]


ARCHS = (90, 120) if cases.ALL else (90,)


def test_every_source_is_here():
    sources = {path.name for path in kernels_cu.FOLDER.glob("*.cu")}
    assert {source for source, _ in KERNELS} | {"spin.cu"} == sources  # which must not overlap what it times


@pytest.mark.parametrize(
    ("kernel", "arch"),
    [(kernel, arch) for kernel in KERNELS for arch in ARCHS if arch == ARCH or kernel[0] != dequant_wide.SOURCE],
    ids=lambda value: value[1] if isinstance(value, tuple) else str(value),
)
def test_kernels_let_the_next_start_and_wait_before_they_end(kernel, arch):
    """Where one kernel may start before its forerunner ends: it lets the next start, and waits before a thread ends."""
    listing, _ = sass.listing_of(sass.cubin_of(*kernel, arch))

    def first(opcode):
        return next(place for place, line in enumerate(listing) if re.search(rf"\b{opcode}\b", line))

    assert first("PREEXIT") < first("ACQBULK") < first("EXIT")
    if kernel[0] == "psumbook.cu":  # two centroids of two items, codes of two position rows, and their scales
        assert sum("LDG" in line for line in listing[: first("ACQBULK")]) == 4 + 4 + 2
    # Loads, or a prefetch, of what no other kernel writes.
    asked = first("(LDG|UBLKPF)")
    assert first("PREEXIT") < asked
    assert asked < first("ACQBULK") or kernel[1].startswith(("sum_groups", "WideX", "add_bias"))  # of operands alone
