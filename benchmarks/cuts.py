"""What many cuts of the main kernels take on this machine's GPU, beside what `auto` cuts and what it estimates.

Their times are what the weights of the cuts' terms are fitted to (`WEIGHTS` in psumbook_cut.py, dequant_cut.py and
dequant_wide_cut.py): least squares of the relative error, none below zero, in clocks. A cut counts the less the slower
it is than the fastest of its product, for which the estimates are to find the fastest.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.layers import DEVICE, DTYPE, product_name
from codegemm import devices
from codegemm.devices import Device
from codegemm.engines.cuda import (
    Dequant,
    Psumbook,
    dequant_cut,
    dequant_fast,
    dequant_wide,
    dequant_wide_cut,
    model,
    psumbook,
    psumbook_cut,
)
from codegemm.engines.cuda.gpu import KNOWN, Gpu, gpu_of
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.steps import Launch, Scratch, Step
from codegemm.formats import random_weight
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.formats.format import spec_of
from codegemm.kernel import Product
from codegemm.measuring.accuracy import inputs
from codegemm.measuring.stopwatch import Candidate

MODULES = {"psumbook": psumbook_cut, "dequant": dequant_cut, "dequant_wide": dequant_wide_cut}
# The kernels, and what makes the launch or the launches of a product of theirs that is cut in another way.
KERNELS: dict[str, tuple[CudaKernel, Callable[..., Launch | list[Step]]]] = {
    "psumbook": (Psumbook(), psumbook.launch),
    "dequant": (Dequant(), dequant_fast.launch),
    "dequant_wide": (Dequant(), dequant_wide.launches),  # its form for Hopper
}
_SHAPES = ((14336, 4096), (4096, 14336), (4096, 4096), (1024, 4096))
PRODUCTS = [
    *(("psumbook", shape, config, n) for shape in (*_SHAPES, (28672, 8192), (8192, 28672), (8192, 8192))
      for config in ("m1v4g128", "m2v8g128") for n in (1, 4)),
    *((name, shape, config, n) for name, batches in (("dequant", (8, 16, 64)), ("dequant_wide", (64, 128)))
      for shape in _SHAPES for config in ("m1v4g128", "m2v8g128") for n in batches),
]  # fmt: skip
_LIKELIEST, _OTHERS = 20, 10  # cuts of a product by their estimates, and of the rest


class Recut(CudaKernel[CodebookSpec, CodebookWeight]):
    """One of `KERNELS` for products that are cut so."""

    weights = CodebookWeight

    def __init__(self, name: str, cut: Any) -> None:
        self.name, self.cut = name, cut
        self._kernel, self._launch = KERNELS[name]

    def unfit_for(self, product: Product[CodebookSpec], gpu: Gpu) -> str | None:
        return self._kernel.unfit_for(product, gpu)

    def arrange(self, weight: CodebookWeight) -> Prepared:
        return self._kernel.arrange(weight)

    def prepare(self, weight: CodebookWeight, device: Device) -> Prepared:
        """The arrays are those of the kernel itself, which no cut changes."""
        return replace(self._kernel.prepared(weight), runs={})

    def batches(self, n: int) -> Iterable[int]:
        return (n,)  # fewer rows are cut in another way

    def steps(self, product: Product[CodebookSpec], gpu: Gpu, scratch: Scratch) -> list[Step]:
        steps = self._launch(product, self.cut, gpu, scratch)
        return [steps] if isinstance(steps, Launch) else steps


def products(gpu: Gpu) -> list[tuple[str, tuple[int, int], str, int]]:
    """Those that a GPU has a kernel for."""
    return [product for product in PRODUCTS if product[0] != "dequant_wide" or gpu.arch == dequant_wide_cut.ARCH]


def builds() -> Iterator[Callable[[], object]]:
    """What it compiles."""
    for name, shape, config, n in products(gpu_of(DEVICE)):
        product = Product.of(spec_of(shape, config), n, DTYPE)
        for cut in _chosen(MODULES[name], product.spec, n, gpu_of(DEVICE)):
            yield from Recut(name, cut).builds(product, DEVICE)


def run(seconds: float) -> dict[str, Any]:
    """Times by product and cut, and the fitted weights."""
    gpu, end = gpu_of(DEVICE), time.monotonic() + seconds
    timed: list[dict[str, Any]] = []
    for name, shape, config, n in products(gpu):
        if time.monotonic() > end:
            print("no time was left for more")
            break
        weight, module = random_weight(shape, config).to(DEVICE), MODULES[name]
        x = inputs(shape[1], n, DTYPE)
        picked, rows = module.cut_for(weight.spec, n, gpu), []
        for cut in _chosen(module, weight.spec, n, gpu):
            timing = Candidate(Recut(name, cut), weight, [n], DTYPE).measure(x, 0)[1]
            terms = module.terms(cut, weight.spec, gpu)
            rows.append({
                "kernel": name, "shape": shape, "config": config, "batch": n, "picked": cut == picked,
                "seconds": timing.median, "quartiles": timing.quartiles, "timed": timing.how,
                "cut": asdict(cut) | {"slices": len(cut.slices)}, "splits": cut.splits, "terms": terms,
                "estimate": module.estimate(cut, weight.spec, gpu),
            })  # fmt: skip
        best = min(row["seconds"] for row in rows)
        pick = next(row for row in rows if row["picked"])
        print(
            f"{product_name(shape, config, n, name)} picked {pick['seconds'] * 1e6:6.2f} us, "
            f"estimated {pick['estimate'] * 1e6:6.2f}; best of {len(rows)} cuts {best * 1e6:6.2f}",
            flush=True,
        )
        timed += rows
    return {"device": devices.name(DEVICE), "clock": gpu.clock, "cuts": timed, "weights": fitted(timed, gpu.clock)}


def fitted(rows: Sequence[dict[str, Any]], clock: float) -> dict[str, dict[str, float]]:
    """Clocks of each term, by kernel."""
    by_kernel = {}
    for name in dict.fromkeys(row["kernel"] for row in rows):
        kernel_rows = [row for row in rows if row["kernel"] == name]
        names = list(kernel_rows[0]["terms"])
        clocks = np.array([row["seconds"] * clock for row in kernel_rows])
        terms = np.array([[row["terms"][term] for term in names] for row in kernel_rows])
        counts = _share_of_fastest(kernel_rows) ** 3
        weights = least_squares(terms / clocks[:, None] * counts[:, None], counts)
        by_kernel[name] = dict(zip(names, map(float, weights), strict=True))
        off = np.quantile(np.abs(terms @ weights / clocks - 1), (0.5, 0.9))
        print(f"{name}: {by_kernel[name]}; off by {off[0]:.1%} in the median, by up to {off[1]:.1%} in nine of ten")
    return by_kernel


def _share_of_fastest(rows: Sequence[dict[str, Any]]) -> npt.NDArray:
    """What the fastest cut of each row's product takes of the row's time."""
    fastest: dict[tuple[Any, ...], float] = {}
    for row in sorted(rows, key=lambda row: row["seconds"], reverse=True):
        fastest[*row["shape"], row["config"], row["batch"]] = row["seconds"]
    return np.array([fastest[*row["shape"], row["config"], row["batch"]] / row["seconds"] for row in rows])


def least_squares(a: npt.NDArray, b: npt.NDArray) -> npt.NDArray:
    """x >= 0 that makes |a x - b| small: the most negative unknown becomes zero until there is none."""
    kept = np.arange(a.shape[1])
    x = np.zeros(a.shape[1])
    while len(kept):
        solution = np.linalg.lstsq(a[:, kept], b, rcond=None)[0]
        if solution.min() >= 0:
            x[kept] = solution
            break
        kept = np.delete(kept, solution.argmin())
    return x


def _chosen(module: ModuleType, spec: Any, n: int, gpu: Gpu) -> list[Any]:
    """The cut that is taken, the likeliest ones and some of all others."""
    cuts = sorted(dict.fromkeys(module.candidates(spec, n, gpu)), key=lambda cut: module.estimate(cut, spec, gpu))
    rest = cuts[_LIKELIEST:]
    return list(
        dict.fromkeys([module.cut_for(spec, n, gpu), *cuts[:_LIKELIEST], *rest[:: max(1, len(rest) // _OTHERS)]])
    )


def parts(name: str, shape: tuple[int, int], config: str, n: int, gpu: Gpu) -> Counter[str]:
    """Seconds, estimated, of each part of a product as it is cut by itself."""
    product = Product.of(spec_of(shape, config), n, DTYPE)
    found: Counter[str] = Counter()
    for work in Recut(name, MODULES[name].cut_for(product.spec, n, gpu)).decide(product, gpu).works:
        found.update(model.parts(work, gpu))
    return found


def main(arguments: list[str] | None = None) -> None:
    """`python -m benchmarks.cuts [GPU]`: what the estimated times of all products above are made of, in microseconds,
    the largest part first; it needs no GPU."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("gpu", nargs="?", default="h200", choices=list(KNOWN))
    gpu = KNOWN[parser.parse_args(arguments).gpu]
    for name, shape, config, n in products(gpu):
        seconds = parts(name, shape, config, n, gpu)
        listed = ", ".join(f"{part} {1e6 * each:.1f}" for part, each in seconds.most_common())
        print(f"{product_name(shape, config, n, name)} {1e6 * seconds.total():6.1f} us: {listed}")


if __name__ == "__main__":
    main()
