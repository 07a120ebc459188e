"""What claims are computed from, and numbers in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator

import numpy as np

from benchmarks.tables import files, speed
from benchmarks.tables.files import Row
from codegemm.engines import cpu, cuda
from codegemm.formats.format import spec_of
from codegemm.kernel import Kernel, Product
from codegemm.measuring.sources import LLAMA_3_8B
from codegemm.reporting import by

EIGHT_BITS = ("m1v4g128", "m2v8g128", "m2v8g-1")  # configurations that were measured whose codes have so many
_SQUARE = (4096, 4096)
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PARTS = {"a tenth": 1 / 10, "one eighth": 1 / 8, "a fifth": 1 / 5, "a quarter": 1 / 4, "a third": 1 / 3,
          "half": 1 / 2, "two thirds": 2 / 3, "three quarters": 3 / 4}  # fmt: skip


def in_words(number: float) -> str:
    """The nearest integer, up to ten."""
    return _WORDS[round(number)]


def part(number: float) -> str:
    """The nearest simple fraction; ValueError where none is within a tenth of it."""
    words = min(_PARTS, key=lambda each: abs(_PARTS[each] - number))
    if not math.isclose(_PARTS[words], number, rel_tol=0.1):
        raise ValueError(f"{number:.3f} is no simple fraction")
    return words


def power(number: float) -> str:
    """`2e-4`, `1.4e-4`: with one decimal where that is not zero."""
    digits, exponent = f"{number:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def bits(config: str, shape: tuple[int, int] = _SQUARE) -> float:
    """Of a weight, all that is stored counted."""
    return spec_of(shape, config).bits_per_weight


def beside_codes(config: str, of_codes: float) -> tuple[float, float]:
    """The least and the most bits that a weight takes beside its codes, of the layers of Llama-3-8B."""
    found = [bits(config, shape) - of_codes for shape in LLAMA_3_8B]
    return min(found), max(found)


def cpu_times_dense(kernel: str, config: str, batch: int) -> list[float]:
    """Means over Llama-3-8B's layers, of every processor."""
    found = [speed.mean(files.of_llama(files.rows(file)), kernel, config, batch) for file in files.COMPARED]
    return [each for each in found if each is not None]


def gpu_rows(*models: str) -> list[Row]:
    """Of what an H200 measured, like `8b`; all without a name."""
    reports = [f"nvidia-h200/bench-{model}.json" for model in models or ("405b", "70b", "8b")]
    return [row for report in reports for row in files.rows(report)]


def chosen(rows: Iterable[Row], config: str, batch: int) -> list[Row]:
    """What `auto` takes."""
    return [row for row in rows if row["chosen"] and (row["config"], row["batch"]) == (config, batch)]


def auto_times_dense(rows: Iterable[Row], config: str, batch: int) -> float:
    """Of what `auto` takes, the geometric mean."""
    return statistics.geometric_mean(row["times_dense"] for row in chosen(rows, config, batch))


def batches(rows: Iterable[Row]) -> list[int]:
    """That were measured."""
    return sorted({row["batch"] for row in rows})


def share(rows: Iterable[Row], shape: tuple[int, int], config: str) -> float:
    """Of the copy bandwidth, in percent, that the chosen kernel reaches for one row of x."""
    [row] = [row for row in chosen(rows, config, 1) if tuple(row["shape"]) == shape]
    return 100 * row["bandwidth_share"]


def targets(model: str, *words: str) -> list[tuple[float, float]]:
    """(found, wanted) of the targets whose statement has these words."""
    its = files.read(f"nvidia-h200/bench-{model}.json")["targets"]
    return [(each["found"], each["least"]) for each in its if all(word in each["statement"] for word in words)]


def target(model: str, shape: tuple[int, int], config: str, n: int, terms: str) -> tuple[float, float]:
    """(found, wanted) of one target: of a product, in terms of the copy bandwidth or a kernel."""
    [one] = targets(model, f"{by(shape)}, {config}, N = {n}: at least", terms)
    return one


def met(model: str, *words: str) -> float:
    """What is wanted by targets that are all met, and want the same; AssertionError where they don't."""
    its = targets(model, *words)
    [least] = {least for _, least in its}
    assert all(found >= least for found, _ in its), f"missed: {model} {words}"
    return least


def promised(engine: str, config: str, n: int, dtype: str) -> float:
    """The largest error that a kernel which `auto` may take allows itself."""
    product = Product.of(spec_of(_SQUARE, config), n, np.dtype(dtype) if dtype != "bfloat16" else dtype)
    its: list[Kernel] = [kernel for kernel in {"cpu": cpu, "cuda": cuda}[engine].KERNELS if kernel.automatic]
    return max(kernel.tolerance(product) for kernel in its)


def cpu_errors(precision: str, normal: bool) -> float:
    """The largest error of one row of x in `make cpu`: of normally distributed x, or of x with outliers."""
    return max(
        each.error
        for _, measured in files.ratios().values()
        for each in measured.accuracies
        if each.precision == precision and (each.x == "normal") == normal
    )


def cuts(kernel: str) -> Iterator[tuple[int, float]]:
    """Of each product: how many cuts were measured, and how many times as long as the best of them the picked one
    took."""
    products: dict[tuple[object, ...], list[Row]] = {}
    for row in files.read("nvidia-h200/cuts.json")["cuts"]:
        if row["kernel"] == kernel:
            products.setdefault((*row["shape"], row["config"], row["batch"]), []).append(row)
    for rows in products.values():
        [picked] = [row["seconds"] for row in rows if row["picked"]]
        yield len(rows), picked / min(row["seconds"] for row in rows)
