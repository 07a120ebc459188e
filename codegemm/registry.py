"""The registry of kernels: the package's own, and those that third parties register."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from codegemm.devices import CPU, FIRST_GPU, Device
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.extended import ExtendedSpec
from codegemm.formats.names import spec_of
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Kernel, Product
from codegemm.locks import ForkSafeLock

ENTRY_POINT_GROUP = "codegemm.kernels"
PRECISIONS = ("full", "fast")

_REQUIRED = ("name", "engine", "refuses", "prepare", "run", "workspace", "cost")
_REFUSES = "`refuses(product, device)` returns None where a product can be, else the reason as text"

_kernels: dict[str, Kernel] = {}
_lock = ForkSafeLock()
_loaded = False
_version = 0


@dataclass(frozen=True)
class KernelInfo:
    """A row of `codegemm.kernels()`: `reason` says why the kernel is not usable."""

    name: str
    engine: str
    usable: bool
    reason: str | None

    def __repr__(self) -> str:
        return f"{self.engine}:{self.name}  " + ("usable" if self.usable else f"no: {self.reason}")


def register_kernel(kernel: Kernel, *, replace: bool = False) -> Kernel:
    """Add a kernel, so that `kernel=` names it and `codegemm compare` measures it; returns it.

    Raises TypeError unless it is an instance of a subclass of Kernel, and for one that says by `supports`, or by True
    and False, what it multiplies; ValueError for a name that is taken or reserved.
    """
    missing = [attribute for attribute in _REQUIRED if not hasattr(kernel, attribute)]
    if missing or not isinstance(kernel, Kernel):
        is_class = "is a class: register an instance" if isinstance(kernel, type) else "is not a codegemm.Kernel"
        lacks = f"lacks {', '.join(missing)}" if missing else is_class
        raise TypeError(f"kernel {kernel!r} {lacks}; subclass codegemm.Kernel")
    if hasattr(kernel, "supports"):
        raise TypeError(f"kernel {kernel.name!r} defines `supports`: write `refuses` in its place; {_REFUSES}")
    if not (isinstance(kernel.weights, type) and issubclass(kernel.weights, Weight)):
        raise TypeError(f"kernel {kernel.name!r}: weights {kernel.weights!r}, must be a class of weights")
    if not isinstance(kernel.name, str) or kernel.name in ("", "auto") or ":" in kernel.name:
        raise ValueError(f"kernel name {kernel.name!r}: must be text without a colon, and not 'auto'")
    if kernel.engine not in ("cpu", "cuda"):
        raise ValueError(f"kernel {kernel.name!r}: engine {kernel.engine!r}, must be cpu or cuda")
    if kernel.precision not in PRECISIONS:
        raise ValueError(f"kernel {kernel.name!r}: precision {kernel.precision!r}, must be {' or '.join(PRECISIONS)}")
    if kernel.automatic and kernel.precision == "fast":
        raise ValueError(f"kernel {kernel.name!r}: automatic is for kernels of precision 'full'")
    _try(kernel)
    with _lock:
        _load()
        _add(kernel, replace)
    return kernel


def unregister_kernel(full_name: str) -> None:
    """Remove a kernel by its full name, like `cpu:mine`; KeyError if there is none."""
    with _lock:
        _load()
        del _kernels[full_name]
        changed()


def registered(engine: str | None = None, spec: Spec | None = None) -> list[Kernel]:
    """All kernels, or those of one engine, in the order of registration; with a spec what multiplies its weights."""
    with _lock:
        _load()
        kernels = [k for k in _kernels.values() if engine in (None, k.engine)]
    return kernels if spec is None else [kernel_for(kernel, spec) for kernel in kernels]


def version() -> int:
    """Changes whenever there may be another kernel for a product."""
    return _version


def changed() -> None:
    """Let every product be decided anew."""
    global _version
    with _lock:
        _version += 1


def kernel_for(kernel: Kernel, spec: Spec) -> Kernel:
    """What multiplies weights of `spec` under a kernel's name: itself, or it with what their extensions need."""
    is_core = isinstance(spec, ExtendedSpec) and kernel.weights is CodebookWeight
    return _extended(kernel) if is_core else kernel


@cache
def _extended(kernel: Kernel) -> Kernel:
    """Always the same one: weights keep what it prepared."""
    from codegemm.engines.cpu.extended import CpuExtended
    from codegemm.engines.cuda.extended import CudaExtended
    from codegemm.engines.cuda.kernel import CudaKernel

    if kernel.engine == "cpu":
        return CpuExtended(kernel)
    return CudaExtended(kernel) if isinstance(kernel, CudaKernel) else kernel


def multiplies(kernel: Kernel, spec: Spec) -> bool:
    """Whether a kernel is for weights of that kind."""
    return isinstance(spec, kernel.weights.spec_type)


def refusal(kernel: Kernel, product: Product, device: Device) -> str | None:
    """Why a kernel can't multiply so, or None."""
    if kernel.engine != device.engine:
        return f"the weight is on {device}"
    reason = kernel.unavailable()
    if reason is None and not multiplies(kernel, product.spec):
        reason = f"it multiplies {kernel.weights.__name__}s"
        if isinstance(product.spec, ExtendedSpec) and kernel.weights is CodebookWeight:
            reason += "; of an ExtendedWeight's core on a GPU CudaKernels do"
    return reason or _checked(kernel, kernel.refuses(product, device))


def kernels(w: Weight | None = None, n: int = 1) -> list[KernelInfo]:
    """Every kernel and whether it is usable: on this machine, or for n rows (of float32) times the weight `w`."""
    if w is not None and not isinstance(w, Weight):
        raise TypeError(f"kernels: w is {type(w).__name__}, must be a quantised weight")
    if not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n={n!r}: must be an integer of at least 1")
    infos = []
    for kernel in registered():
        reason = kernel.unavailable()
        if reason is None and w is not None:
            product = Product.of(w.spec, n, np.float32)
            reason = refusal(kernel_for(kernel, w.spec), product, w.device)
        infos.append(KernelInfo(kernel.name, kernel.engine, reason is None, reason))
    return infos


def _checked(kernel: Kernel, reason: Any) -> str | None:
    if reason is not None and not isinstance(reason, str):
        raise TypeError(f"kernel {kernel.name!r}: `refuses` returned {reason!r}; {_REFUSES}")
    return reason


def _try(kernel: Kernel) -> None:
    """TypeError where `refuses` answers by True or False; whatever else it raises for a made-up product says nothing.

    A CudaKernel's, which would look for a GPU, is checked at its first product.
    """
    if hasattr(kernel, "unfit_for"):
        return
    for config in ("m1v4g128", "e8p"):
        product = Product.of(spec_of((256, 512), config), 1, np.float32)
        if multiplies(kernel, product.spec):
            try:
                reason = kernel.refuses(product, CPU if kernel.engine == "cpu" else FIRST_GPU)
            except Exception:
                continue
            _checked(kernel, reason)


def _add(kernel: Kernel, replace: bool = False) -> None:
    if kernel.full_name in _kernels and not replace:
        raise ValueError(f"kernel {kernel.full_name} is registered already; pass replace=True")
    _kernels[kernel.full_name] = kernel
    changed()


def _load() -> None:
    """Register the package's kernels and those of installed third parties, at the first use."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    from importlib import metadata

    from codegemm import baselines
    from codegemm.engines import cpu, cuda, reference

    for group in (reference, cpu, cuda, baselines):
        for kernel in group.KERNELS:
            _add(kernel)
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            value = entry.load()
            register_kernel(value() if isinstance(value, type) else value)
        except Exception as error:  # somebody else's package must not break this one
            warnings.warn(f"kernel {entry.name!r} of {entry.value!r} was left out: {error}", stacklevel=2)
