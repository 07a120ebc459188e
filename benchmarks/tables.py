"""`make tables`: README's tables, and the crossovers that `auto` looks up, from the files that measuring left.

The CPU's are of `codegemm compare --json benchmarks/results/cpu.json`, the GPUs' of `make gpu`, the
quantisers' of `make accuracy`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codegemm import tables
from codegemm.comparison.sources import RANDOM_CONFIGS
from codegemm.formats.names import name_of, spec_of
from codegemm.registry import registered
from codegemm.tables import Choice

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
NOTHING = (
    "No time on a GPU is stated here, since none was measured: `codegemm predict` says what the cost model expects.\n"
)
_KERNELS = ("psumbook", "psumbook_fast", "dequant", "quip", "aqlm", "dequant_dense", "dense_bf16", "dense")


def main() -> None:
    """Write them."""
    README.write_text(renewed(README.read_text()))
    choices = crossovers(reports())
    if choices:
        tables.CROSSOVERS.write_text(json.dumps(choices, indent=1) + "\n")


def renewed(document: str) -> str:
    """README with its tables replaced."""
    document = _replaced(document, "cpu", cpu_table(json.loads((RESULTS / "cpu.json").read_text())))
    document = _replaced(document, "gpu", gpu_tables(reports()))
    document = _replaced(document, "gaussian", gaussian_table(json.loads((RESULTS / "quantize.json").read_text())))
    return _replaced(document, "minilm", minilm_table(json.loads((RESULTS / "quantize-minilm.json").read_text())))


def reports() -> list[dict[str, Any]]:
    """What each part of each GPU measured, as `make gpu` wrote it."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/bench-*.json"))]


def cpu_table(result: dict[str, Any]) -> str:
    """Geometric means over the shapes of Llama-3-8B."""
    return _means([row for row in result["rows"] if row["case"].startswith("Llama-3-8B")])


def gpu_tables(gpu_reports: list[dict[str, Any]]) -> str:
    """For each GPU the geometric means over all shapes, and what `auto` takes for one row of x, shape by shape."""
    text = ""
    for device in dict.fromkeys(report["device"] for report in gpu_reports):
        parts = [report for report in gpu_reports if report["device"] == device]
        rows = [row for report in parts for row in report["rows"]]
        copied = statistics.median(report["bandwidth"] for report in parts)
        shapes = len({tuple(row["shape"]) for row in rows})
        text += (
            f"\n{device}, a copy moving {copied / 1e9:.0f} GB/s, geometric means over {shapes} layers of Llama-3:\n\n"
        )
        text += _means(rows)
        text += "\nOne row of x, the kernel that `auto` takes:\n\n" + _single(rows)
    return text or NOTHING


def gaussian_table(result: dict[str, Any]) -> str:
    """Accuracy, time and memory of the quantisers on Gaussian matrices."""
    text = "\n| configuration | matrix | bits | relative MSE | seconds | GiB |\n|---|---|---|---|---|---|\n"
    for row in result["rows"]:
        rows, columns = row["shape"]
        text += (
            f"| {row['config']} | {rows} x {columns} | {row['bits_per_weight']:.3f} | {row['relative_mse']:.4f} "
            f"| {row['seconds']:.0f} | {row['gib']:.1f} |\n"
        )
    return text


def minilm_table(result: dict[str, Any]) -> str:
    """Errors on a trained transformer, for each way of quantising it."""
    text = "\n| configuration | way | bits | error of weights | error of outputs |\n|---|---|---|---|---|\n"
    for row in result["rows"]:
        text += (
            f"| {row['config']} | {row['way']} | {row['bits_per_weight']:.2f} | {row['weight_error']:.4f} "
            f"| {row['output_error']:.4f} |\n"
        )
    return text


def crossovers(gpu_reports: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The fastest automatic kernel of each weight, for runs of measured batches, by architecture."""
    automatic = {kernel.name for kernel in registered("cuda") if kernel.automatic}
    choices: dict[str, list[dict[str, Any]]] = {}
    for report in gpu_reports:
        fastest: dict[tuple[str, tuple[int, int]], dict[int, dict]] = {}
        for row in report["rows"]:
            if row["kernel"] in automatic:
                shape = tuple(row["shape"])
                best = fastest.setdefault((name_of(spec_of(shape, row["config"])), shape), {})
                if row["batch"] not in best or row["seconds"] < best[row["batch"]]["seconds"]:
                    best[row["batch"]] = row
        for (weights, shape), best in fastest.items():
            choices.setdefault(str(report["arch"]), []).extend(
                asdict(Choice(weights, shape, batches, "float16", kernel)) for batches, kernel in _runs(best)
            )
    return choices


def _runs(best: dict[int, dict]) -> Iterator[tuple[tuple[int, int], str]]:
    """((first batch, last batch), kernel) of neighbouring batches whose fastest kernel is the same."""
    run: list[int] = []
    for n in sorted(best):
        if run and best[n]["kernel"] != best[run[-1]]["kernel"]:
            yield (run[0], run[-1]), best[run[0]]["kernel"]
            run = []
        run.append(n)
    if run:
        yield (run[0], run[-1]), best[run[0]]["kernel"]


def _means(rows: list[dict[str, Any]]) -> str:
    """Times dense by kernel, weights and batch."""
    batches = sorted({row["batch"] for row in rows})
    products = sorted({(row["kernel"], row["config"]) for row in rows}, key=_place)
    with_bits = all("bits_per_weight" in row for row in rows)
    lines = [["kernel", "weights", *["bits/weight"] * with_bits, *(f"batch {n}" for n in batches)]]
    for product in products:
        group = [row for row in rows if (row["kernel"], row["config"]) == product]
        bits = sorted({f"{row['bits_per_weight']:.2f}".rstrip("0").rstrip(".") for row in group} if with_bits else [])
        cells = []
        for n in batches:
            ratios = [row["times_dense"] for row in group if row["batch"] == n and row["times_dense"]]
            cells.append(f"{statistics.geometric_mean(ratios):.2f}" if ratios else "")
        lines.append([f"`{product[0]}`", product[1], *[" to ".join(bits[:1] + bits[1:][-1:])] * with_bits, *cells])
    return _markdown(lines)


def _single(rows: list[dict[str, Any]]) -> str:
    """Microseconds, bytes a second and ratios of the chosen kernels at N = 1."""
    lines = [["shape", "weights", "kernel", "us", "GB/s", "% of copy", "times dense"]]
    for row in rows:
        if row["batch"] == 1 and row["chosen"]:
            dense = "" if row["times_dense"] is None else f"{row['times_dense']:.2f}"
            lines.append([
                f"{row['shape'][0]} x {row['shape'][1]}", row["config"], f"`{row['kernel']}`",
                f"{row['seconds'] * 1e6:.1f}", f"{row['bytes_read'] / row['seconds'] / 1e9:.0f}",
                f"{100 * row['bandwidth_share']:.0f}", dense,
            ])  # fmt: skip
    return _markdown(lines)


def _place(product: tuple[str, str]) -> tuple[int, str, int, str]:
    """Kernels and configurations in their usual order, others behind."""
    kernel, config = product
    known = _KERNELS.index(kernel) if kernel in _KERNELS else len(_KERNELS)
    order = RANDOM_CONFIGS.index(config) if config in RANDOM_CONFIGS else len(RANDOM_CONFIGS)
    return known, kernel, order, config


def _markdown(lines: list[list[str]]) -> str:
    head, *rest = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rest))


def _replaced(document: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name}: written by `make tables` -->\n", f"<!-- end of {name} -->\n"
    before, rest = document.split(begin)
    return before + begin + text + end + rest.split(end)[1]


if __name__ == "__main__":
    main()
