"""`make tables`: the documents' tables, and the crossovers that `auto` looks up, from the files that measuring left.

The CPUs' are of `codegemm compare --json benchmarks/results/cpu.json` and the like, those of torch of `make torch`,
the GPUs' of `make gpu`, the quantisers' of `make accuracy`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from codegemm import tables
from codegemm.formats.format import spec_of
from codegemm.measuring.sources import RANDOM_CONFIGS
from codegemm.registry import registered
from codegemm.reporting import by, counted, decimals
from codegemm.tables import Choice

ROOT = Path(__file__).parent.parent
DOCUMENTS = tuple(ROOT / name for name in ("README.md", "docs/results.md", "docs/quantising.md", "docs/torch.md"))
RESULTS = ROOT / "benchmarks" / "results"
_SUMMARY = {
    ("psumbook", "m1v4g128"), ("psumbook", "m2v8g-1"), ("dequant", "m1v4g128"), ("dequant", "m2v8g-1"),
    ("quip", "e8p"), ("qtip", "qtip"), ("aqlm", "m2v8g-1"), ("dense_bf16", ""), ("torch_fp32", ""), ("dense", ""),
}  # fmt: skip
NOTHING = (
    "No time on a GPU is stated here, since none was measured: `codegemm predict` says what the cost model expects.\n"
)
CPU_FILES = ("cpu.json", "cpu-avx512.json")  # README sums up the first
TORCH_FILES = ("torch-avx512.json",)
_KERNELS = (
    "psumbook", "psumbook_fast", "dequant", "quip", "aqlm", "dequant_dense", "dense_bf16", "torch_fp32", "dense",
)  # fmt: skip


def main() -> None:
    """Write them."""
    texts = written()
    for document in DOCUMENTS:
        document.write_text(renewed(document.read_text(), texts))
    choices = crossovers(reports())
    if choices:
        tables.CROSSOVERS.write_text(json.dumps(choices, indent=1) + "\n")


def written() -> dict[str, str]:
    """Every table by its name."""
    cpu = _of_llama(_rows(CPU_FILES[0]))
    return {
        "cpu-summary": _means(_summed_up(cpu)),
        "gpu-summary": gpu_tables(reports(), whole=False),
        "cpu": "".join(cpu_table(json.loads((RESULTS / file).read_text())) for file in CPU_FILES),
        "gpu": gpu_tables(reports()),
        "torch": "".join(torch_tables(json.loads((RESULTS / file).read_text())) for file in TORCH_FILES),
        "gaussian": gaussian_table(_rows("quantize.json")),
        "minilm": minilm_table(_rows("quantize-minilm.json")),
    }


def renewed(document: str, texts: dict[str, str]) -> str:
    """A document with those of the tables replaced that it has."""
    for name, text in texts.items():
        begin, end = f"<!-- {name}: written by `make tables` -->\n", f"<!-- end of {name} -->\n"
        if begin in document:
            before, rest = document.split(begin)
            document = before + begin + text + end + rest.split(end)[1]
    return document


def cpu_table(result: dict[str, Any]) -> str:
    """The geometric means over the shapes of Llama-3-8B, on one machine."""
    machine = result["machine"]
    paths = ", ".join(dict.fromkeys(row["path"] for row in result["rows"] if row["path"]))
    told = f"{machine['device']}{f' ({paths})' if paths else ''}, {counted(machine['threads'], 'thread')}"
    return f"\n{told}:\n\n{_means(_of_llama(result['rows']))}"


def torch_tables(result: dict[str, Any]) -> str:
    """What layers in torch cost, and a Llama's token, on one machine."""
    machine = result["machine"]
    told = (
        f"{machine['processor']} ({result['path']}), {counted(machine['threads'], 'thread')}, torch {result['torch']}"
    )
    tokens = [["a token", "ms, linear layers", "times torch", "ms, all but the head", "times torch"]]
    for name, row in result["tokens"].items():
        cells = (row["layers_ms"], row["layers_times"], row["model_ms"], row["model_times"])
        tokens.append([name, *(f"{cell:.2f}" for cell in cells)])
    modes = result["us_beside_the_plan"]
    calls = [["us beside the plan's", *(f"`{mode}`" for mode in modes)]]
    names = list(next(iter(modes.values())))[1:]
    calls += [[name, *(f"{mode[name]:.0f}" for mode in modes.values())] for name in names]
    return f"\n{told}, in multiples of the faster of torch's:\n\n{_markdown(tokens)}\n{_markdown(calls)}"


def _of_llama(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["case"].startswith("Llama-3-8B")]


def _summed_up(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the products that README shows."""
    return [row for row in rows if (row["kernel"], row["config"]) in _SUMMARY]


def reports() -> list[dict[str, Any]]:
    """What each part of each GPU measured, as `make gpu` wrote it."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/bench-*.json"))]


def _rows(file: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / file).read_text())["rows"]
    return rows


def gpu_tables(gpu_reports: list[dict[str, Any]], whole: bool = True) -> str:
    """For each GPU the geometric means over all shapes, and what `auto` takes for one row of x, shape by shape; not
    `whole`: the means of README's products alone."""
    text = ""
    for device in dict.fromkeys(report["device"] for report in gpu_reports):
        parts = [report for report in gpu_reports if report["device"] == device]
        rows = [row for report in parts for row in report["rows"]]
        copied = statistics.median(report["bandwidth"] for report in parts)
        shapes = len({tuple(row["shape"]) for row in rows})
        text += (
            f"\n{device}, a copy moving {copied / 1e9:.0f} GB/s, geometric means over {shapes} layers of Llama-3:\n\n"
        )
        text += _means(rows if whole else _summed_up(rows))
        if not whole:
            continue
        text += "\nOne row of x, the kernel that `auto` takes:\n\n" + _single(rows)
    return text or NOTHING


def gaussian_table(rows: list[dict[str, Any]]) -> str:
    """Accuracy, time and memory of the quantisers on Gaussian matrices."""
    lines = [["configuration", "matrix", "bits", "relative MSE", "seconds", "GiB", "on"]]
    for row in rows:
        accuracy = (f"{row['bits_per_weight']:.3f}", f"{row['relative_mse']:.4f}")
        cost = (f"{row['seconds']:.0f}", f"{row['gib']:.1f}", f"{row['device']} ({row['path']})")
        lines.append([row["config"], by(row["shape"]), *accuracy, *cost])
    return "\n" + _markdown(lines, "---")


def minilm_table(rows: list[dict[str, Any]]) -> str:
    """Errors on a trained transformer, for each way of quantising it."""
    lines = [["configuration", "way", "bits", "relative MSE of weights", "relative MSE of outputs"]]
    for row in rows:
        errors = (f"{row['weight_error']:.4f}", f"{row['output_error']:.4f}")
        lines.append([row["config"], row["way"], f"{row['bits_per_weight']:.2f}", *errors])
    return "\n" + _markdown(lines, "---")


def crossovers(gpu_reports: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The fastest automatic kernel of each weight, for runs of measured batches, by architecture."""
    automatic = {kernel.name for kernel in registered("cuda") if kernel.automatic}
    choices: dict[str, list[dict[str, Any]]] = {}
    for report in gpu_reports:
        fastest: dict[tuple[str, tuple[int, int]], dict[int, dict]] = {}
        for row in report["rows"]:
            if row["kernel"] in automatic:
                shape = tuple(row["shape"])
                best = fastest.setdefault((spec_of(shape, row["config"]).name, shape), {})
                if row["batch"] not in best or row["seconds"] < best[row["batch"]]["seconds"]:
                    best[row["batch"]] = row
        for (weights, shape), best in fastest.items():
            choices.setdefault(str(report["arch"]), []).extend(
                asdict(Choice(weights, shape, batches, "float16", kernel)) for batches, kernel in _runs(best)
            )
    return choices


def _runs(best: dict[int, dict]) -> Iterator[tuple[tuple[int, int], str]]:
    """((first batch, last batch), kernel) of neighbouring batches whose fastest kernel is the same."""
    for kernel, batches in groupby(sorted(best), key=lambda n: best[n]["kernel"]):
        first, *_, last = 2 * list(batches)
        yield (first, last), kernel


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
            lines.append([
                by(row["shape"]), row["config"], f"`{row['kernel']}`",
                f"{row['seconds'] * 1e6:.1f}", f"{row['bytes_read'] / row['seconds'] / 1e9:.0f}",
                f"{100 * row['bandwidth_share']:.0f}", decimals(row["times_dense"]),
            ])  # fmt: skip
    return _markdown(lines)


def _place(product: tuple[str, str]) -> tuple[int, str, int, str]:
    """Kernels and configurations in their usual order, others behind."""
    kernel, config = product
    known = _KERNELS.index(kernel) if kernel in _KERNELS else len(_KERNELS)
    order = RANDOM_CONFIGS.index(config) if config in RANDOM_CONFIGS else len(RANDOM_CONFIGS)
    return known, kernel, order, config


def _markdown(lines: list[list[str]], rule: str = " --- ") -> str:
    """A table, its heads first."""
    head, *rest = (f"| {' | '.join(line)} |\n" for line in lines)
    return "".join((head, f"|{'|'.join([rule] * len(lines[0]))}|\n", *rest))


if __name__ == "__main__":
    main()
