"""What the cost model says of a GPU's products: times by counts and data sheets, where nothing could be measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from codegemm.choice import choose, lookup_of
from codegemm.engines.cuda import model
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.formats.format import parse, spec_of
from codegemm.formats.weight import Spec
from codegemm.kernel import Product
from codegemm.registry import multiplies, registered

DTYPE = np.dtype(np.float16)


@dataclass(frozen=True)
class Prediction:
    """A kernel's product. config: empty for a dense one. bandwidth_share: bytes read a second, of those a copy moves;
    chosen: whether `auto` takes this kernel; bound: what the product waits for longest, bound_seconds: how long."""

    kernel: str
    config: str
    shape: tuple[int, int]
    batch: int
    seconds: float
    bandwidth_share: float
    chosen: bool
    bound: str
    bound_seconds: float


def predict(
    gpu: Gpu, shapes: Iterable[tuple[int, int]], configs: Sequence[str], batches: Sequence[int]
) -> list[Prediction]:
    """Every kernel of the CUDA engine whose products are steps, for x in float16; each product once, the dense one once
    a shape and batch. Kernels that refuse a product are left out (`refusals`). ValueError, before anything is
    computed, for a shape that a configuration can't hold."""
    predictions: list[Prediction] = []
    specs = {shape: {str(parse(config)): spec_of(shape, config) for config in configs} for shape in shapes}
    for by_config in specs.values():
        for n in dict.fromkeys(batches):
            rows: dict[tuple[str, str], Prediction] = {}
            for config, spec in by_config.items():
                for row in _product(config, spec, n, gpu):
                    rows.setdefault((row.kernel, row.config), row)
            predictions += rows.values()
    return predictions


def refusals(gpu: Gpu, shape: tuple[int, int], config: str, n: int) -> dict[str, str]:
    """Why kernels that are for such weights can't multiply so, by name."""
    product = Product.of(spec_of(shape, config), n, DTYPE)
    reasons = {kernel.name: kernel.refuses_on(product, gpu) for kernel in _kernels(product.spec)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def copy_bandwidth(gpu: Gpu) -> float:
    """Bytes a second that a copy moves there, read and written."""
    return model.MEMORY_SHARE * gpu.bandwidth


def _product(config: str, spec: Spec, n: int, gpu: Gpu) -> list[Prediction]:
    """Of all kernels, the dense one first."""
    product = Product.of(spec, n, DTYPE)
    fitting = [kernel for kernel in _kernels(spec) if kernel.refuses_on(product, gpu) is None]
    works = {kernel: kernel.decide(product, gpu).works for kernel in fitting}
    times = {kernel: model.seconds(works[kernel], gpu) for kernel in works}
    automatic = {kernel.name: times[kernel] for kernel in works if kernel.is_automatic(product)}
    chosen = choose(lookup_of(product), automatic) if automatic else None
    waits = {kernel: model.longest(works[kernel], gpu) for kernel in works}
    return [
        Prediction(
            kernel=kernel.name,
            config="" if kernel.name == "dense" else config,
            shape=spec.shape,
            batch=n,
            seconds=times[kernel],
            bandwidth_share=sum(work.bytes_read for work in works[kernel]) / times[kernel] / copy_bandwidth(gpu),
            chosen=kernel.name == chosen,
            bound=waits[kernel][1],
            bound_seconds=waits[kernel][0],
        )
        for kernel in sorted(works, key=lambda kernel: kernel.name != "dense")
    ]


def _kernels(spec: Spec) -> list[CudaKernel]:
    return [k for k in registered("cuda", spec) if isinstance(k, CudaKernel) and multiplies(k, spec)]
