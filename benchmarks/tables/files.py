"""The files that measuring left, as plain data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.cpu import measured
from benchmarks.cpu.measured import Machine, Measured
from codegemm.engines.cpu import isa

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# Named by the command that wrote them and the instruction set that it measured.
COMPARED = ("compare-vnni.json", "compare-bf16.json", "compare-avx2.json")  # README sums up the first
TORCH = ("torch-bf16.json",)
GAUSSIAN, MINILM = "quantize.json", "quantize-minilm.json"

Row = dict[str, Any]


def read(name: str) -> Any:
    """A file by its path in RESULTS."""
    return json.loads((RESULTS / name).read_text())


def rows(name: str) -> list[Row]:
    """The rows of one."""
    found: list[Row] = read(name)["rows"]
    return found


def ratios() -> dict[str, tuple[Machine, Measured]]:
    """What `make cpu` measured, by file, of the best instruction set first."""
    names = [f"cpu-{each.name}.json" for each in isa.ALL]
    return {name: measured.read(RESULTS / name) for name in names if (RESULTS / name).exists()}


def of_gpus() -> list[dict[str, Any]]:
    """What each part of each GPU measured, as `make gpu` wrote it."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/bench-*.json"))]


def reproductions() -> dict[str, dict[str, Any]]:
    """The paper's experiments as machines made them, by the path in RESULTS."""
    paths = [*RESULTS.glob("reproduce-*.json"), *RESULTS.glob("*/reproduce.json")]
    return {str(path.relative_to(RESULTS)): json.loads(path.read_text()) for path in sorted(paths)}


def of_llama(its: list[Row]) -> list[Row]:
    """Without MiniLM's."""
    return [row for row in its if row["case"].startswith("Llama-3-8B")]
