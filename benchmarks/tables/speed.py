"""Products in multiples of dense ones."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.tables import markdown
from benchmarks.tables.files import Row
from codegemm.measuring.sources import RANDOM_CONFIGS

_SUMMARY = {
    ("psumbook", "m1v4g128"), ("psumbook", "m2v8g-1"), ("dequant", "m1v4g128"), ("dequant", "m2v8g-1"),
    ("quip", "e8p"), ("qtip", "qtip"), ("aqlm", "m2v8g-1"), ("dense_bf16", ""), ("torch_fp32", ""), ("dense", ""),
}  # fmt: skip
_KERNELS = (
    "auto", "auto_fast", "psumbook", "psumbook_fast", "dequant", "quip", "aqlm", "dequant_dense", "dense_bf16",
    "torch_fp32", "dense",
)  # fmt: skip


def summed_up(rows: Sequence[Row]) -> list[Row]:
    """Those of the products that README shows."""
    return [row for row in rows if (row["kernel"], row["config"]) in _SUMMARY]


def mean(rows: Sequence[Row], kernel: str, config: str, batch: int) -> float | None:
    """How many times as fast as dense, the geometric mean over all shapes; None where nothing was measured."""
    ratios = [
        row["times_dense"]
        for row in rows
        if (row["kernel"], row["config"], row["batch"]) == (kernel, config, batch) and row["times_dense"]
    ]
    return statistics.geometric_mean(ratios) if ratios else None


def means(rows: Sequence[Row]) -> str:
    """Times dense by kernel, weights and batch."""
    batches = sorted({row["batch"] for row in rows})
    products = sorted({(row["kernel"], row["config"]) for row in rows}, key=_place)
    with_bits = all("bits_per_weight" in row for row in rows)
    lines = [["kernel", "weights", *["bits/weight"] * with_bits, *(f"batch {n}" for n in batches)]]
    for kernel, config in products:
        group = [row for row in rows if (row["kernel"], row["config"]) == (kernel, config)]
        bits = sorted({f"{row['bits_per_weight']:.2f}".rstrip("0").rstrip(".") for row in group} if with_bits else [])
        found = [mean(group, kernel, config, n) for n in batches]
        cells = ["" if each is None else f"{each:.2f}" for each in found]
        lines.append([f"`{kernel}`", config, *[" to ".join(bits[:1] + bits[1:][-1:])] * with_bits, *cells])
    return markdown.table(lines)


def _place(product: tuple[str, str]) -> tuple[int, str, int, str]:
    """Kernels and configurations in their usual order, others behind."""
    kernel, config = product
    known = _KERNELS.index(kernel) if kernel in _KERNELS else len(_KERNELS)
    order = RANDOM_CONFIGS.index(config) if config in RANDOM_CONFIGS else len(RANDOM_CONFIGS)
    return known, kernel, order, config
