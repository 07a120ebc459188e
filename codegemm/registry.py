"""The registry of kernels: the package's own, and those that third parties register."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from codegemm.counts import count
from codegemm.devices import CPU, FIRST_GPU, Device
from codegemm.formats.format import registered as registered_formats
from codegemm.formats.format import spec_of
from codegemm.formats.transformed import TransformedSpec
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Kernel, Product
from codegemm.plugins import Registry

ENTRY_POINT_GROUP = "codegemm.kernels"
PRECISIONS = ("full", "fast")

_REQUIRED = ("name", "engine", "refuses", "prepare", "run", "workspace", "cost")
_REFUSES = "`refuses(product, device)` returns None where a product can be, else the reason as text"

_versions = itertools.count(1)
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
    and False, what it multiplies; ValueError for one without a name or an engine, or whose name is taken or reserved.
    """
    check(kernel)
    _kernels.so_far()
    _kernels.add(kernel.full_name, kernel, replace)
    return kernel


def check(kernel: Any) -> None:
    """TypeError or ValueError for what can't be registered under any name."""
    missing = [attribute for attribute in _REQUIRED if not hasattr(kernel, attribute)]
    if missing or not isinstance(kernel, Kernel):
        is_class = "is a class, must be an instance" if isinstance(kernel, type) else "is not a codegemm.Kernel"
        lacks = f"lacks {', '.join(missing)}" if missing else is_class
        raise TypeError(f"kernel {kernel!r} {lacks}; subclass codegemm.Kernel")
    if hasattr(kernel, "supports"):
        raise TypeError(f"kernel {kernel.name!r} defines `supports`: write `refuses` in its place; {_REFUSES}")
    if not (isinstance(kernel.weights, type) and issubclass(kernel.weights, Weight)):
        raise TypeError(f"kernel {kernel.name!r}: weights {kernel.weights!r}, must be a class of weights")
    if kernel.name == "":
        kind = type(kernel)
        raise ValueError(f"kernel {kind}: has no name: set `name = {kind.__name__.lower()!r}`")
    if not isinstance(kernel.name, str) or kernel.name == "auto" or ":" in kernel.name:
        raise ValueError(f"kernel name {kernel.name!r}: must be text without a colon, and not 'auto'")
    if kernel.engine == "":
        raise ValueError(f"kernel {kernel.name!r}: has no engine: set `engine = 'cpu'` or 'cuda'")
    if kernel.engine not in ("cpu", "cuda"):
        raise ValueError(f"kernel {kernel.name!r}: engine {kernel.engine!r}, must be cpu or cuda")
    if kernel.precision not in PRECISIONS:
        raise ValueError(f"kernel {kernel.name!r}: precision {kernel.precision!r}, must be {' or '.join(PRECISIONS)}")
    if kernel.automatic and kernel.precision == "fast":
        raise ValueError(f"kernel {kernel.name!r}: automatic is for kernels of precision 'full'")
    _try(kernel)


def unregister_kernel(full_name: str) -> None:
    """Remove a kernel by its full name, like `cpu:mine`; KeyError if there is none."""
    _kernels.remove(full_name)


def registered(engine: str | None = None, spec: Spec | None = None) -> list[Kernel]:
    """All kernels, or those of one engine, in the order of registration; with a spec what multiplies its weights."""
    kernels = [k for k in _kernels.all() if engine in (None, k.engine)]
    return kernels if spec is None else [kernel_for(kernel, spec) for kernel in kernels]


def version() -> int:
    """Changes whenever there may be another kernel for a product."""
    return _version


def changed() -> None:
    """Let every product be decided anew."""
    global _version
    _version = next(_versions)


def kernel_for(kernel: Kernel, spec: Spec) -> Kernel:
    """What multiplies weights of `spec` under a kernel's name: itself, or it with what stands around their core."""
    if multiplies(kernel, spec) or not (isinstance(spec, TransformedSpec) and multiplies(kernel, spec.core)):
        return kernel
    return _transformed(kernel)


@cache
def _transformed(kernel: Kernel) -> Kernel:
    """Always the same one: weights keep what it prepared."""
    from codegemm.engines.cpu.transformed import CpuTransformed
    from codegemm.engines.cuda.kernel import CudaKernel
    from codegemm.engines.cuda.transformed import CudaTransformed

    if kernel.engine == "cpu":
        return CpuTransformed(kernel)
    return CudaTransformed(kernel) if isinstance(kernel, CudaKernel) else kernel


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
        if isinstance(product.spec, TransformedSpec) and multiplies(kernel, product.spec.core):
            reason += "; what stands around a core is done on a GPU for CudaKernels"
    return reason or _checked(kernel, kernel.refuses(product, device))


def kernels(w: Weight | None = None, n: int = 1) -> list[KernelInfo]:
    """Every kernel and whether it is usable: on this machine, or for n rows (of float32) times the weight `w`."""
    if w is not None and not isinstance(w, Weight):
        raise TypeError(f"kernels: w is {type(w).__name__}, must be a quantised weight")
    count("n", n)
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
    for text in (text for format in registered_formats() for text in format.examples[:1]):
        try:
            product = Product.of(spec_of((256, 512), text), 1, np.float32)
            where = CPU if kernel.engine == "cpu" else FIRST_GPU
            reason = kernel.refuses(product, where) if multiplies(kernel, product.spec) else None
        except Exception:
            continue
        _checked(kernel, reason)


def _load_own() -> None:
    from codegemm import baselines
    from codegemm.engines import cpu, cuda, reference

    for group in (reference, cpu, cuda, baselines):
        for kernel in group.KERNELS:
            _kernels.add(kernel.full_name, kernel, replace=True)


_kernels: Registry[Kernel] = Registry("kernel", ENTRY_POINT_GROUP, register_kernel, _load_own, changed)
