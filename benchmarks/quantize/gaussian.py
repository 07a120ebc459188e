"""Accuracy, time and memory of the quantisers on Gaussian matrices: `python -m benchmarks.quantize.gaussian`.

Each case runs in a process of its own, prints a line and joins benchmarks/results/quantize.json in place of what is
there of its kind; the exit status is 1 where a target is missed. Times are those of this machine with all its cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import codegemm
from benchmarks.quantize import tables
from codegemm.engines.cpu import device, isa
from codegemm.exploration.measure import energy
from codegemm.formats import parse
from codegemm.quantize import qtip
from codegemm.quantize.arithmetic import BACKENDS, find
from codegemm.reporting import write_json
from codegemm.version import __version__

RESULT = Path(__file__).parents[1] / "results" / "quantize.json"
FIRST_TABLE = ", k-means table"  # of a case: not the table that training made of it
_TRELLIS_SECONDS = 8 if "avx512f" in isa.chosen().needs else 13  # of 1024 x 1024, on two cores


@dataclass(frozen=True)
class Case:
    """What is quantised: a configuration, with FIRST_TABLE or without; the most that its relative squared error, its
    seconds and its GiB may be."""

    config: str
    shape: tuple[int, int] = (4096, 4096)
    mse: float = np.inf
    seconds: float = np.inf
    gib: float = np.inf

    @property
    def plain(self) -> str:
        """The configuration alone."""
        return self.config.removesuffix(FIRST_TABLE)


CASES = (
    Case("m1v4g-1", mse=0.0974),
    Case("m1v4g128", seconds=60),
    Case("m2v8g-1", mse=0.0916),
    Case("m2v8g128", seconds=240),
    Case("m3v8g-1", mse=0.028),
    Case("m4v8g-1", mse=0.0085),
    Case("e8p", mse=0.093),
    Case("m1v4g128", (28672, 8192), gib=12),
    Case("qtip", (1024, 1024), mse=0.0705, seconds=_TRELLIS_SECONDS),
    Case(f"qtip{FIRST_TABLE}", (1024, 1024), mse=0.0715),
    Case("qtip3", (1024, 1024), mse=0.0187, seconds=_TRELLIS_SECONDS),
    Case("qtip4", (1024, 1024), mse=0.0053, seconds=_TRELLIS_SECONDS),
    Case("qtip", mse=0.0705),
    Case("q1g128", mse=0.362),
    Case("q2g128", mse=0.1145, seconds=30),
    Case("q3g128", mse=0.0355),
    Case("q4g128", mse=0.0113),
)


@dataclass(frozen=True)
class Row:
    """What was measured. relative_mse: |W - W'|^2 / |W|^2. gib: the most that the process held, W included."""

    config: str
    shape: tuple[int, int]
    bits_per_weight: float
    relative_mse: float
    seconds: float
    gib: float
    backend: str
    device: str = field(default_factory=device.name)
    path: str = field(default_factory=lambda: isa.chosen().name)
    cores: int = field(default_factory=codegemm.get_num_threads)
    version: str = __version__

    def misses(self, case: Case) -> list[str]:
        """The targets that are not reached."""
        checks = (
            ("relative MSE", self.relative_mse, case.mse),
            ("seconds", self.seconds, case.seconds),
            ("GiB", self.gib, case.gib),
        )
        return [f"{what} {value:.4g}, at most {limit:.4g}" for what, value, limit in checks if value > limit]


def main() -> int:
    """Measure the cases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize.gaussian", description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, help="default: what quantize takes of itself")
    parser.add_argument("--config", type=parse, help="this configuration only")
    asked = parser.parse_args()
    rows, missed = [], False
    for case in (case for case in CASES if asked.config in (None, parse(case.plain))):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (case, asked.backend))
        rows.append(row)
        misses = row.misses(case)
        missed |= bool(misses)
        print(
            f"{row.config:20} {row.shape[0]:5} x {row.shape[1]:<5} {row.bits_per_weight:6.3f} bits  relative MSE "
            f"{row.relative_mse:.5f}  {row.seconds:6.1f} s  {row.gib:5.2f} GiB  {row.backend}",
            *misses,
            sep="  MISSED: ",
            flush=True,
        )
    write_json({"rows": joined(json.loads(RESULT.read_text())["rows"], map(asdict, rows))}, RESULT)
    return int(missed)


def joined(old: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows, new ones in place of old ones of the same configuration and shape."""
    return list({(row["config"], *row["shape"]): row for row in (*old, *new)}.values())


def measure(case: Case, backend: str | None) -> Row:
    """Quantise one matrix."""
    matrix = np.random.default_rng(0).standard_normal(case.shape, np.float32)
    with ExitStack() as stack:
        if case.config != case.plain:
            first = tables.by_kmeans(parse(case.plain).bits, find("numpy", 0)).astype(np.float16)
            stack.enter_context(patch.object(qtip, "table", lambda bits: first))
        begin = time.perf_counter()
        weight = codegemm.quantize(matrix, case.plain, backend=backend)
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    error = energy(matrix, less=weight.dequantize()) / energy(matrix)
    name = find(backend, matrix.size).name
    if case.config == "e8p":
        name = "numpy"
    elif isinstance(weight, codegemm.QtipWeight) and name != "cuda":
        name = "compiled"
    return Row(case.config, case.shape, weight.bits_per_weight, error, seconds, peak, name)


if __name__ == "__main__":
    sys.exit(main())
