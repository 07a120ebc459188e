"""The sum over splits of K as NVRTC compiles it into every kernel that has one: no GPU is needed."""

import pytest
from support import sass

from codegemm.engines.cuda import compiler

KERNELS = [
    ("psumbook.cu", "psumbook<4, 1, 8, 1, 1, Half, 2>"),
    ("dequant.cu", "DequantShape<4, 1, 8, 1, 16, Half, true>"),
    ("dequant.cu", "DequantShape<8, 2, 8, 1, 16, Float, true>"),
    ("dequant_plain.cu", "dequant_plain<3, u8, 16, Half>"),
]
# A lane's: of eight splits or more, of more than four, and of fewer, with several rows of x at once.
FORMS, IN_FLIGHT = 3, 16


@pytest.mark.parametrize("arch", compiler.ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel[1])
def test_all_loads_of_a_trip_come_before_its_first_addition(kernel, arch, tmp_path):
    """A fence before the count and an invalidation of L1 after it: once, whatever the number of splits."""
    listing, _ = sass.listing_of(sass.compile_one(*kernel, arch, tmp_path))
    [fence] = [place for place, line in enumerate(listing) if "MEMBAR" in line and "GPU" in line]
    invalidation = next(place for place, line in enumerate(listing) if "CCTL" in line and place > fence)
    loads = [place for place, line in enumerate(listing) if "LDG.E.128.STRONG.GPU" in line]
    assert len(loads) == FORMS * IN_FLIGHT
    assert fence < invalidation < loads[0]
    for first in range(0, len(loads), IN_FLIGHT):
        trip = listing[loads[first] : loads[first + IN_FLIGHT - 1]]
        assert not any("STL" in line for line in trip)
        assert sum("FADD" in line for line in trip) <= (arch < 90)  # one slips in where registers are short
