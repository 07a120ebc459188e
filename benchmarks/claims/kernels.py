"""Those of docs/kernels.md, most of which follow from how kernels are made."""

from __future__ import annotations

import re

from benchmarks.claims import sources
from benchmarks.claims.claim import Claim, Computed, Fixed
from benchmarks.tables import files
from codegemm.baselines.cuda.lutgemm import Lutgemm
from codegemm.engines.cuda.dequant_dense import SLICE_BYTES
from codegemm.formats.format import spec_of
from codegemm.kernel import Product

KERNELS = "docs/kernels.md"


def _loop(kernel: str, config: str, n: int) -> list[float]:
    """What the counted loop of a product has in the table of loops: instructions, wavefronts, clocks of both, clocks of
    codes from memory."""
    text = (files.ROOT / KERNELS).read_text()
    table = text[text.index("<!-- loops") : text.index("<!-- end of loops")]
    [cells] = re.findall(rf"^\| {kernel} \| {config} \| {n} \|(.*)\|$", table, re.MULTILINE)
    return [float(cell) for cell in cells.split("|")]


def _beside(n: int) -> float:
    """Instructions of QTIP's loop in terms of those of the other two, of one row of x: the mean."""
    others = [_loop("psumbook", "m1v4g128", 1), _loop("psumbook", "m2v8g128", 1), _loop("quip", "e8p", 1)]
    return sum(_loop("qtip", "qtip", n)[0] / each[0] for each in others) / len(others)


_MADE = "how the kernel is made"
CLAIMS: tuple[Claim, ...] = (
    Fixed(KERNELS, "build its tables in shared memory (64 KiB)", _MADE),
    Fixed(KERNELS, "the four quarters of its k axis", _MADE),
    Fixed(KERNELS, "x near 1e38 times a large centroid", "float32's largest number is 3e38"),
    Fixed(KERNELS, "(NVRTC 12.9.86)", "a version, which tests/house/test_counters.py compares with the compiler's"),
    Computed(KERNELS, "slices of rows of at most {:.0f} MiB are rebuilt in x's dtype", lambda: [SLICE_BYTES / 2**20]),
    Fixed(KERNELS, "every 16 bytes of a centroid eight times in a row", _MADE),
    Fixed(KERNELS, "Two 8-bit codebooks are 64 KiB", "2 * 256 centroids of 16 bytes, eight times"),
    Fixed(KERNELS, "a codebook of 1 MiB would not stay", "65536 centroids of 16 bytes"),
    Fixed(
        KERNELS,
        "Each block also fills 64 KiB with copies: 512 wavefronts, a sixth of what its 16 rows take at K = 4096.",
        "65536 bytes by 128; 16 * 4096 / 256 * 12 = 3072",
    ),
    Fixed(KERNELS, "The tests find 1e-4 to 6e-4 of the result's norm.", "tests/engines/cuda/test_emulated_aqlm.py"),
    Fixed(KERNELS, "in shared memory (64 KiB) +--------+--------+", "128 tables of 256 fp16"),
    Fixed(KERNELS, "by adding 2x to every entry", "x twice"),
    Fixed(KERNELS, "what is there already, plus 2x", "x twice"),
    Fixed(KERNELS, "takes a scale for each lookup, about four times the instructions", "a word has four lookups"),
    Computed(
        KERNELS,
        "the busiest bank is asked for {:.1f} different words: as in the published table layout above. That is {:.0f} "
        "wavefronts where the Psumbook has {:.0f}, and more clocks than the codes take to come from the memory of an "
        "H200 ([counted], {:.0f} of them).",
        lambda: [
            _loop("lutgemm", "q2g128", 1)[1] / _loop("psumbook", "m1v4g128", 1)[1],
            _loop("lutgemm", "q2g128", 1)[1],
            _loop("psumbook", "m1v4g128", 1)[1],
            _loop("lutgemm", "q2g128", 1)[3],
        ],
    ),
    Fixed(
        KERNELS,
        "A table is about 75 instructions of a warp, a tenth of the time in which 1024 rows look up two planes of it",
        "75 / 4 clocks, and 2 * 1024 / 32 lookups of 2.8",
    ),
    Fixed(KERNELS, "a word's one of four entries", _MADE),
    Fixed(
        KERNELS,
        "The tests find 4e-4 to 9e-4 of the result's norm, whatever K is",
        "tests/engines/cuda/test_emulated_lutgemm.py",
    ),
    Computed(
        KERNELS,
        "It promises {}, for few outputs may cancel.",
        lambda: [sources.power(Lutgemm().tolerance(Product.of(spec_of((4096, 4096), "q2g128"), 1, "float16")))],
    ),
    Fixed(KERNELS, "about 1e-5 of the result's norm", "tests/engines/cuda/test_emulated_quip.py"),
    Computed(KERNELS, "slices of What are rebuilt as fp16, at most {:.0f} MiB, and", lambda: [SLICE_BYTES / 2**20]),
    Fixed(KERNELS, "moves the vector down a quarter and not up", "the format"),
    Fixed(KERNELS, "15 times the sum of x is taken off", "a nibble stands for (2n - 15) / 4"),
    Fixed(KERNELS, "for a third of the others' size would not fit all GPUs", _MADE),
    Computed(
        KERNELS,
        "the compiled loop has about {:.0f} instructions for 16 x 64 weights",
        lambda: [_loop("quip", "e8p", 1)[0]],
    ),
    Fixed(KERNELS, "2.5 of them `mma`", "two for each of 16 x 64 weights, and the sum of x for four tiles together"),
    Fixed(KERNELS, "in registers, 32 KiB on a multiprocessor", "2 * 256 bytes a warp and step, of 64 warps"),
    Fixed(KERNELS, "one of four is there without", _MADE),
    Computed(
        KERNELS,
        "counted below, {} times as many as a Psumbook or QuIP#'s lookups need, and {:.1f} times what the codes of 2 "
        "bit take to come from the memory of an H200. A batch of up to eight rows costs {} more.",
        lambda: [
            sources.in_words(_beside(1)),
            _loop("qtip", "qtip", 1)[2] / _loop("qtip", "qtip", 1)[3],
            sources.part(_loop("qtip", "qtip", 8)[2] / _loop("qtip", "qtip", 1)[2] - 1),
        ],
    ),
    Fixed(KERNELS, "eight times as many entries for each weight", "1024 / 2 by 256 / 4"),
    Fixed(KERNELS, "| 6 and a fourth of an `mma` |", _MADE),
    Fixed(KERNELS, "65,536 stores of whole warps for the entries, nine times as many as", "65536 / 6976"),
    Fixed(KERNELS, "128 KiB for 64 columns", "32 pairs of 1024 entries of 4 bytes"),
)
