"""What the cost model says of a GPU's products: times by counts and data sheets, where nothing could be measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codegemm.choice import choose
from codegemm.comparison.targets import Timed
from codegemm.dispatch import kernel_for, product_of, registered
from codegemm.engines.cuda import model
from codegemm.engines.cuda.extended import CudaExtended
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.launch import CudaKernel
from codegemm.engines.cuda.model import Work
from codegemm.formats.names import spec_of
from codegemm.formats.weight import Spec
from codegemm.kernel import Kernel

DTYPE = np.dtype(np.float16)


@dataclass(frozen=True)
class Prediction(Timed):
    """bound: what the product waits for longest. times_dense: the dense product's time in multiples of this one."""

    bound: str
    times_dense: float | None


def predict(
    gpu: Gpu, shapes: Iterable[tuple[int, int]], configs: Sequence[str], batches: Iterable[int]
) -> list[Prediction]:
    """Every kernel of the CUDA engine that says what its launches do, for x in float16; the dense product once a shape
    and batch. ValueError for a shape that a configuration can't hold."""
    found: list[Prediction] = []
    for shape in shapes:
        specs = {config: spec_of(shape, config) for config in configs}
        for n in batches:
            rows: dict[tuple[str, str], Prediction] = {}
            for config, spec in specs.items():
                for row in _product(config, spec, n, gpu, rows.get(("dense", ""))):
                    rows.setdefault((row.kernel, row.config), row)
            found += rows.values()
    return found


def copy_bandwidth(gpu: Gpu) -> float:
    """Bytes a second that a copy moves there, read and written."""
    return model.MEMORY_SHARE * gpu.bandwidth


def bound(works: Sequence[Work], gpu: Gpu) -> str:
    """What the longest launch waits for longest: a part of the GPU, or its own start and what nothing hides."""

    def waits(work: Work) -> tuple[float, str]:
        part, busy = model.bound(work, gpu)
        hidden_by_nothing = model.LAUNCH + work.latency / gpu.clock
        return (hidden_by_nothing, "latency") if hidden_by_nothing > busy else (busy, part)

    return max(map(waits, works))[1]


def _product(config: str, spec: Spec, n: int, gpu: Gpu, dense: Prediction | None) -> list[Prediction]:
    """Of all kernels, the dense one first."""
    modelled = [kernel_for(k, spec) for k in registered("cuda") if hasattr(k, "work")]
    fitting = [k for k in modelled if _refusal(k, spec, n, gpu) is None]
    works: dict[Kernel, tuple[Work, ...]] = {kernel: _work(kernel, spec, n, gpu) for kernel in fitting}
    parts = {kernel: _parts(kernel, spec, n, gpu) for kernel in fitting}
    times = {k: sum(parts[k].values()) if parts[k] else model.seconds(works[k], gpu) for k in fitting}
    automatic = {kernel.name: times[kernel] for kernel in fitting if kernel.is_automatic(n, DTYPE)}
    chosen = choose(product_of(spec, n, DTYPE), automatic) if automatic else None
    dense_seconds = dense.seconds if dense else next((s for k, s in times.items() if k.name == "dense"), None)
    return [
        Prediction(
            kernel=kernel.name,
            config="" if kernel.name == "dense" else config,
            shape=spec.shape,
            batch=n,
            seconds=times[kernel],
            bandwidth_share=kernel.cost(spec, n, DTYPE).bytes_read / times[kernel] / copy_bandwidth(gpu),
            chosen=kernel.name == chosen,
            bound=max(parts[kernel], key=parts[kernel].__getitem__, default=None) or bound(works[kernel], gpu),
            times_dense=dense_seconds and dense_seconds / times[kernel],
        )
        for kernel in sorted(fitting, key=lambda kernel: kernel.name != "dense")
    ]


def _refusal(kernel: Kernel, spec: Spec, n: int, gpu: Gpu) -> str | None:
    if isinstance(kernel, CudaKernel | CudaExtended):
        return kernel.refuses(spec, n, DTYPE, gpu)
    return kernel.supports(spec, n, DTYPE, "cuda:0")


def _parts(kernel: Any, spec: Spec, n: int, gpu: Gpu) -> dict[str, float]:
    """What the estimate is a sum of, where that was measured."""
    return kernel.parts(spec, n, DTYPE, gpu) if isinstance(kernel, CudaKernel) else {}


def _work(kernel: Any, spec: Spec, n: int, gpu: Gpu) -> tuple[Work, ...]:
    return tuple(kernel.work(spec, n, DTYPE, gpu))
