"""Those of the pages that have few."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.claims import sources
from benchmarks.claims.claim import Claim, Computed, Fixed
from benchmarks.tables import files
from codegemm.engines import cpu, cuda
from codegemm.engines.cuda.dequant_dense import SLICE_BYTES
from codegemm.formats.format import spec_of
from codegemm.kernel import Product
from codegemm.measuring.stopwatch import NOISY

COMPARING, MULTIPLYING, QUANTISING = "docs/comparing.md", "docs/multiplying.md", "docs/quantising.md"


def _promises() -> Iterator[str]:
    """Of `dequant` on a GPU, which multiplies by all codebooks: one codebook and one row, two codebooks, more rows in
    bfloat16; of `dequant_dense`."""
    for config, n, dtype in (("m1v4g128", 1, "float16"), ("m2v8g128", 1, "float16"), ("m2v8g128", 4, "bfloat16")):
        yield sources.power(cuda.Dequant().tolerance(Product.of(spec_of((4096, 4096), config), n, dtype)))
    yield sources.power(cuda.DequantDense().tolerance(Product.of(spec_of((4096, 4096), "m1v4g128"), 512, "float16")))


def _full_errors() -> Iterator[str]:
    """What is promised, and what was measured."""
    yield sources.power(sources.promised("cpu", "m2v8g128", 1, "float32"))
    yield sources.power(max(sources.cpu_errors("full", normal) for normal in (True, False)))


def _fast_errors() -> Iterator[str]:
    """What is promised, and what was measured."""
    yield sources.power(cpu.PsumbookFast().tolerance(Product.of(spec_of((4096, 4096), "m1v4g128"), 1, "float32")))
    for normal in (True, False):
        yield sources.power(sources.cpu_errors("fast", normal))


def _table_gain() -> float:
    """Percent that the trained table takes off QTIP's relative MSE with that of k-means."""
    found = {(row["config"], *row["shape"]): row["relative_mse"] for row in files.rows(files.GAUSSIAN)}
    return 100 * (1 - found["qtip", 1024, 1024] / found["qtip, k-means table", 1024, 1024])


def _minilm(config: str, way: str) -> float:
    """The relative MSE of the outputs."""
    [row] = [row for row in files.rows(files.MINILM) if (row["config"], row["way"]) == (config, way)]
    return float(row["output_error"])


def _taken_away() -> str:
    """Of the outputs' relative MSE by a calibration, of every configuration that was calibrated."""
    configs = {row["config"] for row in files.rows(files.MINILM) if row["way"] == "calibrated"}
    [words] = {sources.part(1 - _minilm(config, "calibrated") / _minilm(config, "plain")) for config in configs}
    return words


CLAIMS: tuple[Claim, ...] = (
    Fixed(COMPARING, "a quarter and three quarters of the rounds", "what quartiles are"),
    Computed(COMPARING, "quartiles are more than {:.0f} % of the median apart", lambda: [100 * NOISY]),
    Fixed(COMPARING, "takes two minutes", "a budget: tests/bench/test_benchmark_kernels.py counts what it is for"),
    Fixed(MULTIPLYING, "A compute capability of 8.0", "a version"),
    Computed(
        MULTIPLYING,
        "The error of every row of y is at most {} (up to {} in `make cpu`).",
        _full_errors,
    ),
    Computed(
        MULTIPLYING,
        'With `precision="fast"` it is at most {} for x without outliers ({} in `make cpu`, with outliers {});',
        _fast_errors,
    ),
    Computed(MULTIPLYING, "decoded into a workspace of {:.0f} MiB", lambda: [SLICE_BYTES / 2**20]),
    Computed(
        MULTIPLYING,
        "at most {} for one row of x in float16 or bfloat16 and one codebook, else {} ({} for more rows in bfloat16, "
        "{} by `dequant_dense`).",
        _promises,
    ),
    Computed(QUANTISING, "It takes {:.0f} % off the error of k-means in 2 bits.", lambda: [_table_gain()]),
    Computed(
        QUANTISING,
        "a relative MSE of {:.4f} is an error of {:.0f} %.",
        lambda: [_minilm("m2v8g-1", "plain"), 100 * math.sqrt(_minilm("m2v8g-1", "plain"))],
    ),
    Fixed(QUANTISING, "torch 2.13", "a version"),
    Computed(QUANTISING, "A calibration takes {} of the outputs' relative MSE away.", lambda: [_taken_away()]),
    Computed(
        QUANTISING, "means over the {} linear layers of its encoder", lambda: [files.read(files.MINILM)["layers"]]
    ),
    Fixed("docs/torch.md", "torch 2.11", "a version"),
    Fixed("docs/huggingface.md", "transformers (5.19 or later)", "a version"),
    Fixed("docs/huggingface.md", "Llama-3.1-8B", "a name"),
    Fixed(
        "docs/models.md", "half of a 95 % interval", "what is computed: LEVEL in codegemm/hf/evaluation/bootstrap.py"
    ),
    Fixed("docs/models.md", "`qtip,qtip3@2.55`", "a name: CASES in benchmarks/models/cases.py"),
    Fixed("docs/evaluating.md", "95 % interval", "what is computed: LEVEL in codegemm/hf/evaluation/bootstrap.py"),
    Fixed("docs/evaluating.md", "drawn 2,000 times", "what is computed: RESAMPLES in the same file"),
    Fixed(
        "docs/evaluating.md", "By chance a quarter is right", "one of CHOICES in benchmarks/models/lm_eval/questions.py"
    ),
)
