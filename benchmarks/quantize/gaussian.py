"""Accuracy, time and memory of the quantisers on Gaussian matrices: `python -m benchmarks.quantize.gaussian`.

Each case runs in a process of its own, prints a line and joins benchmarks/results/quantize.json; the exit status is 1
where a target is missed. Times are those of this machine with all its cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import codegemm
from codegemm.engines.cpu import device
from codegemm.exploration.measure import energy
from codegemm.formats import parse
from codegemm.quantize.arithmetic import BACKENDS, find
from codegemm.reporting import write_json
from codegemm.version import __version__

RESULT = Path(__file__).parents[1] / "results" / "quantize.json"


@dataclass(frozen=True)
class Case:
    """What is quantised; the most that its relative squared error, its seconds and its GiB may be."""

    config: str
    shape: tuple[int, int] = (4096, 4096)
    mse: float = np.inf
    seconds: float = np.inf
    gib: float = np.inf


CASES = (
    Case("m1v4g-1", mse=0.0974),
    Case("m1v4g128", seconds=60),
    Case("m2v8g-1", mse=0.0916),
    Case("m2v8g128", seconds=240),
    Case("m3v8g-1", mse=0.028),
    Case("m4v8g-1", mse=0.0085),
    Case("e8p", mse=0.093),
    Case("m1v4g128", (28672, 8192), gib=12),
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
    parser.add_argument("--config", type=parse, help="this configuration only; nothing is stored then")
    asked = parser.parse_args()
    rows, missed = [], False
    for case in (case for case in CASES if asked.config in (None, parse(case.config))):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (case, asked.backend))
        rows.append(row)
        misses = row.misses(case)
        missed |= bool(misses)
        print(
            f"{row.config:9} {row.shape[0]:5} x {row.shape[1]:<5} {row.bits_per_weight:6.3f} bits  relative MSE "
            f"{row.relative_mse:.5f}  {row.seconds:6.1f} s  {row.gib:5.2f} GiB  {row.backend}",
            *misses,
            sep="  MISSED: ",
            flush=True,
        )
    if asked.config is None:
        report = {"version": __version__, "device": device.name(), "cores": codegemm.get_num_threads()}
        write_json(report | {"rows": rows}, RESULT)
    return int(missed)


def measure(case: Case, backend: str | None) -> Row:
    """Quantise one matrix."""
    matrix = np.random.default_rng(0).standard_normal(case.shape, np.float32)
    begin = time.perf_counter()
    weight = codegemm.quantize(matrix, case.config, backend=backend)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    error = energy(matrix, less=weight.dequantize()) / energy(matrix)
    name = "numpy" if case.config == "e8p" else find(backend, matrix.size).name
    return Row(case.config, case.shape, weight.bits_per_weight, error, seconds, peak, name)


if __name__ == "__main__":
    sys.exit(main())
