"""What the engine is measured against beside the package's own baselines: AQLM's numba kernel, and ggml.

They are kernels of this benchmark alone, registered as long as that runs.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu import ggml
from codegemm.arrays import to_torch
from codegemm.baselines.cpu.aqlm import Aqlm
from codegemm.devices import Device
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.formats.format import register_format, unregister_format
from codegemm.kernel import Cost, Kernel, Product
from codegemm.measuring import conditions
from codegemm.registry import register_kernel, unregister_kernel

# With its requirements aqlm brings transformers and accelerate.
INSTALL = "pip install numba scipy torch && pip install --no-deps aqlm"


class AqlmNumba(Kernel[CodebookSpec, CodebookWeight]):
    """The kernel of the package aqlm for CPUs, 2x8 and Kx8. Its threads add to the same outputs: with several, some
    of the sums get lost."""

    name = "aqlm_numba"
    engine = "cpu"
    weights = CodebookWeight
    _counted = Aqlm()

    def unavailable(self) -> str | None:
        missing = [name for name in ("aqlm", "numba", "scipy", "torch") if not _is_installed(name)]
        if missing:
            return f"{' and '.join(missing)} not installed ({INSTALL})"
        try:
            _multiply()
        except Exception as error:  # other versions of somebody else's packages
            return f"aqlm's numba_kernel.py can't be loaded: {type(error).__name__}: {error}"
        return None

    def refuses(self, product: Product[CodebookSpec], device: Device) -> str | None:
        if product.dtype != np.float32:
            return f"x of {product.dtype}: it multiplies float32"
        if product.spec.config.b != 8:
            return f"b={product.spec.config.b}: it reads codes of 8 bits"
        return self._counted.refuses(product, device)

    def prepare(self, weight: CodebookWeight, device: Device) -> tuple[Any, ...]:
        """As AQLM's QuantizedLinear hands it over: int8 codes [K/v, M, m], float32 codebooks [m, 256, 1, v], float32
        scales [M, 1, 1, 1]."""
        import torch

        return (
            torch.from_numpy(np.ascontiguousarray(weight.codes.swapaxes(0, 1)).view(np.int8)),
            torch.from_numpy(weight.part_codebooks[0][:, :, None].astype(np.float32)),
            torch.from_numpy(weight.scales[:, :, None, None].astype(np.float32)),
        )

    def run(self, prepared: tuple[Any, ...], x: Any, out: Any, workspace: Any, stream: Any) -> None:
        out[...] = _multiply()(to_torch(x), *prepared, None).numpy()

    def cost(self, product: Product[CodebookSpec], device: Device) -> Cost:
        """Of the same tables and codes, which this package's own form of the kernel reads, too."""
        return self._counted.cost(product, device)


AQLM_NUMBA = AqlmNumba()


@contextmanager
def registered() -> Iterator[None]:
    """`plan` knows them by name. Their libraries are loaded beforehand: threadpoolctl limits those that it finds."""
    with ExitStack() as stack:
        register_format(ggml.GGML_FORMAT)
        stack.callback(unregister_format, ggml.GGML_FORMAT.name)
        for kernel in (AQLM_NUMBA, ggml.GGML):
            register_kernel(kernel)
            stack.callback(unregister_kernel, kernel.full_name)
        if _is_installed("torch"):
            importlib.import_module("torch")
        AQLM_NUMBA.unavailable()
        ggml.GGML.unavailable()
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """The same number for the package's kernels, NumPy, torch and numba, as far as numba has so many."""
    with ExitStack() as stack:
        stack.enter_context(conditions.threads(count))
        if AQLM_NUMBA.unavailable() is None:
            import numba

            stack.callback(numba.set_num_threads, numba.get_num_threads())
            numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
        yield


@cache
def _multiply() -> Callable[..., Any]:
    """`numba_gemm_lut`, by its file: what the package around it imports changes with its versions."""
    [folder, *_] = importlib.util.find_spec("aqlm").submodule_search_locations
    path = Path(folder) / "inference_kernels" / "numba_kernel.py"
    spec = importlib.util.spec_from_file_location("aqlm_numba_kernel", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # numba's products are those of the BLAS in scipy.
    importlib.import_module("scipy.linalg.cython_blas")
    return module.numba_gemm_lut


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
