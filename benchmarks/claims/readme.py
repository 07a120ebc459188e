"""Those of README.md."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.claims import sources
from benchmarks.claims.claim import Claim, Computed, Fixed
from benchmarks.cpu.measured import AUTO, TORCH_FP32
from benchmarks.tables import cpu, files, speed
from codegemm.measuring.stopwatch import NOISY

README = "README.md"
MAIN = "m2v8g128"  # what README's first numbers are of


def _errors() -> Iterator[float]:
    """Of outputs, in percent: without and with example inputs."""
    for way in ("plain", "calibrated"):
        [row] = [row for row in files.rows(files.MINILM) if (row["config"], row["way"]) == ("m2v8g-1", way)]
        yield 100 * math.sqrt(row["output_error"])


def _first_slower(config: str) -> int:
    """The least rows of x for which what `auto` takes is slower than dense on an H200, and so are all more."""
    rows = sources.gpu_rows()
    slower = [n for n in sources.batches(rows) if sources.auto_times_dense(rows, config, n) < 1]
    assert slower == [n for n in sources.batches(rows) if n >= slower[0]]
    return slower[0]


def _first_slower_by_avx2() -> int:
    """The least rows of x for which torch's product in float32 is faster than what `auto` takes, and so it is for all
    more."""
    [measured] = [measured for machine, measured in files.ratios().values() if machine.path == "avx2"]
    rows = cpu.rows(measured)
    batches = sources.batches(row for row in rows if row["kernel"] == TORCH_FP32)
    slower = [n for n in batches if speed.mean(rows, AUTO, MAIN, n) < speed.mean(rows, TORCH_FP32, "", n)]
    assert slower == [n for n in batches if n >= slower[0]]
    return slower[0]


CLAIMS: tuple[Claim, ...] = (
    Computed(README, "codegemm quantises matrices to about {:.0f} bits per weight", lambda: [sources.bits(MAIN)]),
    Computed(
        README,
        "| Memory | {:.1f} bits per weight: {} of float16 |",
        lambda: [sources.bits(MAIN), sources.part(sources.bits(MAIN) / 16)],
    ),
    Computed(
        README,
        "| Speed, CPU | {:.1f} and {:.1f} times as fast as NumPy in float32, 32 bits per number (two cores of an Intel "
        "Xeon and of an AMD EPYC), {:.1f} times by the AVX2 of that Xeon alone |",
        lambda: sources.cpu_times_dense("psumbook", MAIN, 1),
    ),
    Computed(
        README,
        "| Speed, GPU | {:.1f} times as fast as cuBLAS",
        lambda: [speed.mean(sources.gpu_rows(), "psumbook", MAIN, 1)],
    ),
    Computed(
        README,
        "outputs differ by {:.0f} % from those of the original weights; by {:.0f} % if codegemm is given example",
        _errors,
    ),
    Computed(
        README,
        "the multiplication itself adds [at most {:g} % on a CPU, more on a GPU]",
        lambda: [100 * sources.promised("cpu", MAIN, 1, "float32")],
    ),
    Fixed(README, "half of a 95 % interval", "what is computed: LEVEL in codegemm/hf/evaluation/bootstrap.py"),
    Fixed(README, "`qtip,qtip3@2.55`", "a name: CASES in benchmarks/models/cases.py"),
    Fixed(README, "Python 3.11", "a version"),
    Fixed(README, "a vector of 4 weights is one code, 2 bits per weight", "8 bits by 4"),
    Computed(README, "| AQLM 2x8 | `m2v8g-1` | {:.1f} |", lambda: [sources.bits("m2v8g-1")]),
    Computed(
        README,
        "| AQLM 1x16 | `m1v8b16g-1` | {:.1f} (its large codebook adds {:.1f} to {:.1f}) |",
        lambda: [16 / 8, *sources.beside_codes("m1v8b16g-1", 16 / 8)],
    ),
    Computed(README, "of a fixed lattice, rotated | {:.1f} |", lambda: [sources.bits("e8p")]),
    Computed(
        README,
        "`e8p3`, `e8p4`: only read and multiplied by | {:.1f}, {:.1f} |",
        lambda: map(sources.bits, ("e8p3", "e8p4")),
    ),
    Computed(README, "each with a scale for 128 weights | {:.2f} |", lambda: [sources.bits("q2g128")]),
    Computed(
        README,
        "windows of a row of bits, rotated | {:.1f}, {:.1f}, {:.1f} (and a table",
        lambda: map(sources.bits, ("qtip", "qtip3", "qtip4")),
    ),
    Fixed(README, "a table of 2 KiB", "512 pairs of float16"),
    Computed(
        README,
        'precision="fast") # on a CPU: faster, with {:.0f} % more error',
        lambda: [100 * sources.cpu_errors("fast", normal=True)],
    ),
    Computed(README, "a time that varies by more than {:.0f} %", lambda: [100 * NOISY]),
    Computed(README, "hold about {:.0f} bits per weight in memory, too", lambda: [sources.bits(MAIN)]),
    Computed(
        README,
        "plain float16 is faster from about {} rows of inputs on, for `m2v8g128` from {}, for `e8p` from {}, and",
        lambda: map(_first_slower, ("m1v4g128", "m2v8g128", "e8p")),
    ),
    Computed(README, "torch in float32 is faster from about {} rows on", lambda: [_first_slower_by_avx2()]),
    Fixed(README, "Apache-2.0", "a licence"),
)
