"""What the engine is measured against beside the package's own baselines: torch in float32, AQLM's numba kernel.

They are kernels of this benchmark alone, registered as long as it runs.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from codegemm import arrays
from codegemm.baselines.aqlm import Aqlm
from codegemm.baselines.dense import Dense
from codegemm.comparison import measure
from codegemm.dispatch import register_kernel, unregister_kernel
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel

# With its requirements aqlm brings transformers and accelerate.
INSTALL = "pip install numba scipy torch && pip install --no-deps aqlm"


class TorchFp32(Dense):
    """float32, torch's BLAS."""

    name = "torch_fp32"

    def unavailable(self) -> str | None:
        return None if _is_installed("torch") else "torch is not installed (pip install 'codegemm[torch]')"

    def prepare(self, weight: Weight, device: str) -> Any:
        import torch

        return torch.from_numpy(weight.dequantize(np.float32))

    def workspace(self, spec: Spec, n: int, device: str) -> int:
        return 0

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        return None if dtype == np.float32 else f"x of {dtype}: it is measured with float32"

    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        import torch

        torch.mm(arrays.to_torch(x), prepared.T, out=arrays.to_torch(out))


@dataclass
class AqlmTensors:
    """A weight as AQLM's QuantizedLinear hands it to its kernel: int8 codes [K/v, M, m], float32 codebooks
    [m, 256, 1, v], float32 scales [M, 1, 1, 1]."""

    codes: Any
    codebooks: Any
    scales: Any


class AqlmNumba(Kernel):
    """The kernel of the package aqlm for CPUs, 2x8 and Kx8. Its threads add to the same outputs: with several, some
    of the sums get lost."""

    name = "aqlm_numba"
    engine = "cpu"
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

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        if dtype != np.float32:
            return f"x of {dtype}: it multiplies float32"
        if isinstance(spec, CodebookSpec) and spec.config.b != 8:
            return f"b={spec.config.b}: it reads codes of 8 bits"
        return self._counted.supports(spec, n, dtype, device)

    def prepare(self, weight: Weight, device: str) -> AqlmTensors:
        import torch

        assert isinstance(weight, CodebookWeight)
        return AqlmTensors(
            torch.from_numpy(np.ascontiguousarray(weight.codes.swapaxes(0, 1)).view(np.int8)),
            torch.from_numpy(weight.part_codebooks[0][:, :, None].astype(np.float32)),
            torch.from_numpy(weight.scales[:, :, None, None].astype(np.float32)),
        )

    def run(self, prepared: AqlmTensors, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        y = _multiply()(arrays.to_torch(x), prepared.codes, prepared.codebooks, prepared.scales, None)
        out[...] = y.numpy()

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        """Of the same tables and codes, which this package's own form of the kernel reads, too."""
        return self._counted.cost(spec, n, dtype)


TORCH_FP32, AQLM_NUMBA = TorchFp32(), AqlmNumba()


@contextmanager
def registered() -> Iterator[None]:
    """`plan` knows them by name. Their libraries are loaded beforehand: threadpoolctl limits those that it finds."""
    with ExitStack() as stack:
        for kernel in (TORCH_FP32, AQLM_NUMBA):
            register_kernel(kernel)
            stack.callback(unregister_kernel, kernel.full_name)
        if TORCH_FP32.unavailable() is None:
            importlib.import_module("torch")
        AQLM_NUMBA.unavailable()
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """The same number for the package's kernels, NumPy, torch and numba, as far as numba has so many."""
    with ExitStack() as stack:
        stack.enter_context(measure.threads(count))
        if AQLM_NUMBA.unavailable() is None:
            import numba

            stack.callback(numba.set_num_threads, numba.get_num_threads())
            numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
        yield


@cache
def _multiply() -> Callable[..., Any]:
    """`numba_gemm_lut`, by its file: what the package around it imports changes with its versions."""
    found = importlib.util.find_spec("aqlm")
    assert found is not None
    assert found.submodule_search_locations is not None
    path = Path(next(iter(found.submodule_search_locations))) / "inference_kernels" / "numba_kernel.py"
    spec = importlib.util.spec_from_file_location("aqlm_numba_kernel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # numba's products are those of the BLAS in scipy.
    importlib.import_module("scipy.linalg.cython_blas")
    multiply: Callable[..., Any] = module.numba_gemm_lut
    return multiply


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
