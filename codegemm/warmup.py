"""Compiles beforehand what products would compile at their first use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from codegemm import choice, devices
from codegemm.arrays import float_dtype
from codegemm.counts import count
from codegemm.devices import Device
from codegemm.formats.codebook_config import CodebookConfig
from codegemm.formats.format import spec_of
from codegemm.formats.weight import Spec
from codegemm.kernel import Product


def warmup(
    shapes: Iterable[Spec | tuple[int, int]],
    batches: Iterable[int],
    config: str | CodebookConfig = "m1v4g128",
    dtype: Any = np.float16,
    device: Any = "cuda",
    kernel: str = "auto",
    precision: str = "full",
) -> None:
    """Compile, on all processors, what products with weights of these shapes need; no weights are needed for it.

    shapes: (out_features, in_features) of weights in `config` (`m1v4g128`, `e8p`); or weights' specs, whose own
        configuration counts.
    batches: numbers of rows of x, of `dtype` (float16, bfloat16 or float32), for each of which a kernel is chosen as
        `matmul` and `plan` choose it by `kernel` and `precision`.
    device: as `Weight.to` takes it.

    What is compiled is kept in the user's cache. Raises RuntimeError where there is no such GPU or no compiler for it,
    ValueError for a shape that the configuration can't hold, KernelError where no kernel is chosen.
    """
    where, dtype = Device.parse(device), float_dtype(dtype)
    devices.check(where)
    specs = [shape if isinstance(shape, Spec) else spec_of(shape, config) for shape in shapes]
    builds: list[Callable[[], object]] = []
    for n in batches:
        count("batch", n)
        for spec in specs:
            product = Product.of(spec, n, dtype)
            builds += choice.select(product, where, kernel, precision).builds(product, where)
    build_all(builds)


def build_all(builds: Iterable[Callable[[], object]]) -> None:
    """Make calls of `Kernel.builds`, each once and on all processors; raises the first one's error after all others."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = [pool.submit(build) for build in dict.fromkeys(builds)]
    for build in running:
        build.result()
