"""Every kernel, compiled for GPUs that start one before its forerunner ends: it lets the next one start, and it waits
before any of its threads ends. No GPU is needed."""

import re

import pytest
from support import sass

from codegemm import kernels_cu
from codegemm.engines.cuda import dequant_wide
from codegemm.engines.cuda.dequant_wide_cut import ARCH

KERNELS = [
    ("psumbook.cu", "psumbook<4, 1, 8, 1, 1, Half, 2>"),
    ("dequant.cu", "DequantShape<4, 1, 8, 1, 16, Half, true>"),
    ("dequant_wide.cu", "WideShape<4, 1, 8, 1, 64, Half, 2>"),
    ("dequant_wide_x.cu", "WideX<4, 64, Half>"),
    ("dequant_plain.cu", "dequant_plain<3, u8, 4, Half>"),
    ("dequantize.cu", "dequantize<4, u8, Half, true>"),
    ("dequantize.cu", "dequantize<8, u16, Bfloat, false>"),
    ("aqlm.cu", "aqlm<8, 2, u8, Half>"),
    ("quip.cu", "quip<2, 1>"),
    ("quip.cu", "dequantize_e8p<2>"),
    ("quip.cu", "dequantize_e8p<3>"),
    ("quip.cu", "dequantize_e8p<4>"),
    ("rotate.cu", "rotate_in<Half, Half>"),
    ("rotate.cu", "rotate_out<Half, Half>"),
    ("extended.cu", "rotate_x<Half, Float, 1>"),
    ("extended.cu", "rotate_x<Half, Float, 4>"),
    ("extended.cu", "sum_groups<Half>"),
    ("extended.cu", "finish<Half>"),
]


def test_every_source_is_here():
    sources = {path.name for path in kernels_cu.FOLDER.glob("*.cu")}
    assert {source for source, _ in KERNELS} | {"spin.cu"} == sources  # which must not overlap what it times


@pytest.mark.parametrize(
    ("kernel", "arch"),
    [(kernel, arch) for kernel in KERNELS for arch in (90, 120) if arch == ARCH or kernel[0] != dequant_wide.SOURCE],
    ids=lambda value: value[1] if isinstance(value, tuple) else str(value),
)
def test_kernels_let_the_next_start_and_wait_before_they_end(kernel, arch, tmp_path):
    listing, _ = sass.listing_of(sass.compile_one(*kernel, arch, tmp_path))

    def first(opcode):
        return next(place for place, line in enumerate(listing) if re.search(rf"\b{opcode}\b", line))

    assert first("PREEXIT") < first("ACQBULK") < first("EXIT")
    if kernel[0] == "psumbook.cu":  # two centroids of two items, codes of two position rows, and their scales
        assert sum("LDG" in line for line in listing[: first("ACQBULK")]) == 4 + 4 + 2
    # Loads, or a prefetch, of what no other kernel writes.
    asked = first("(LDG|UBLKPF)")
    assert first("PREEXIT") < asked
    assert asked < first("ACQBULK") or kernel[1].startswith(("sum_groups", "WideX"))  # which read x alone
