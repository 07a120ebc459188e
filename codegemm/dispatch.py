"""The registry of kernels, and which of them a product gets."""

from __future__ import annotations

import os
import threading
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from codegemm import tables
from codegemm.choice import Choice, Product, choose
from codegemm.errors import KernelError
from codegemm.formats.extended import ExtendedSpec
from codegemm.formats.names import name_of
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Kernel

ENTRY_POINT_GROUP = "codegemm.kernels"
PRECISIONS = ("full", "fast")
FAST = "auto:fast"  # what `select` is asked for by `precision="fast"`

_REQUIRED = ("name", "engine", "supports", "prepare", "run", "workspace", "cost")

_registry: dict[str, Kernel] = {}
_lock = threading.RLock()
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

    Raises TypeError unless it is an instance of a subclass of Kernel, ValueError for a name that is taken or reserved.
    """
    missing = [attribute for attribute in _REQUIRED if not hasattr(kernel, attribute)]
    if missing or not isinstance(kernel, Kernel):
        is_class = "is a class: register an instance" if isinstance(kernel, type) else "is not a codegemm.Kernel"
        lacks = f"lacks {', '.join(missing)}" if missing else is_class
        raise TypeError(f"kernel {kernel!r} {lacks}; subclass codegemm.Kernel")
    if kernel.name == "auto" or not isinstance(kernel.name, str) or ":" in kernel.name:
        raise ValueError(f"kernel name {kernel.name!r}: must be text without a colon, and not 'auto'")
    if kernel.engine not in ("cpu", "cuda"):
        raise ValueError(f"kernel {kernel.name!r}: engine {kernel.engine!r}, must be cpu or cuda")
    if kernel.precision not in PRECISIONS:
        raise ValueError(f"kernel {kernel.name!r}: precision {kernel.precision!r}, must be {' or '.join(PRECISIONS)}")
    if kernel.automatic and kernel.precision == "fast":
        raise ValueError(f"kernel {kernel.name!r}: automatic is for kernels of precision 'full'")
    with _lock:
        _load()
        _add(kernel, replace)
    return kernel


def version() -> int:
    """Changes whenever the registry or the tables do."""
    return _version


def choose_anew() -> None:
    """Let every product look up the tables again."""
    with _lock:
        tables.forget()
        _changed()


def unregister_kernel(full_name: str) -> None:
    """Remove a kernel by its full name, like `cpu:mine`; KeyError if there is none."""
    with _lock:
        _load()
        del _registry[full_name]
        _changed()


def registered(engine: str | None = None) -> list[Kernel]:
    """All kernels, or those of one engine, in the order of registration."""
    with _lock:
        _load()
        return [k for k in _registry.values() if engine in (None, k.engine)]


def kernel_for(kernel: Kernel, spec: Spec) -> Kernel:
    """What multiplies weights of `spec` under a kernel's name: itself, or it with what their extensions need."""
    return kernel if kernel.extended or not isinstance(spec, ExtendedSpec) else _extended(kernel)


@cache
def _extended(kernel: Kernel) -> Kernel:
    """Always the same one: weights keep what it prepared."""
    from codegemm.engines.cpu.extended import CpuExtended
    from codegemm.engines.cuda.extended import CudaExtended

    return CpuExtended(kernel) if kernel.engine == "cpu" else CudaExtended(kernel)


def _candidates(spec: Spec, engine: str) -> list[Kernel]:
    return [kernel_for(kernel, spec) for kernel in registered(engine)]


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
            reason = _refusal(kernel_for(kernel, w.spec), w.spec, n, np.dtype(np.float32), w.device)
        infos.append(KernelInfo(kernel.name, kernel.engine, reason is None, reason))
    return infos


def select(spec: Spec, n: int, dtype: np.dtype, device: str, name: str = "auto") -> Kernel:
    """The kernel for n rows of `dtype` times a weight of `spec` on `device`.

    `auto` takes an automatic kernel: as tuned, as measured or as estimated (choice.py); a name takes that kernel.
    KernelError says why where it can't run.
    """
    check_name(name)
    return _select(spec, n, dtype, device, name)


def name_for(kernel: str, precision: str) -> str:
    """What `select` takes for a kernel's name and a precision; ValueError or TypeError for what they can't be."""
    check_name(kernel)
    if kernel == FAST:
        raise KernelError(f"kernel {kernel!r} is unknown: precision='fast' asks for it")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: must be one of {', '.join(PRECISIONS)}")
    return FAST if (kernel, precision) == ("auto", "fast") else kernel


def check_name(name: object) -> None:
    """TypeError unless a kernel's name is text."""
    if not isinstance(name, str):
        raise TypeError(f"kernel={name!r}: must be a name, like 'psumbook' or 'cpu:psumbook'")


@lru_cache(maxsize=1024)
def _select(spec: Spec, n: int, dtype: np.dtype, device: str, name: str) -> Kernel:
    if name == FAST:
        return _choose_fast(spec, n, dtype, device)
    return _choose(spec, n, dtype, device) if name == "auto" else _named(spec, n, dtype, device, name)


def _choose_fast(spec: Spec, n: int, dtype: np.dtype, device: str) -> Kernel:
    """The least estimate among the kernels of `precision="fast"` and the one that `auto` takes without it."""
    fast = [k for k in _candidates(spec, device.partition(":")[0]) if k.precision == "fast"]
    usable = [k for k in fast if not _refusal(k, spec, n, dtype, device)]
    return min([*usable, _choose(spec, n, dtype, device)], key=lambda k: k.estimate(spec, n, dtype, device))


def _choose(spec: Spec, n: int, dtype: np.dtype, device: str) -> Kernel:
    candidates = _candidates(spec, device.partition(":")[0])
    usable = [k for k in candidates if k.is_automatic(n, dtype) and not _refusal(k, spec, n, dtype, device)]
    if not usable:
        raise KernelError(
            f"no kernel is chosen automatically for this weight on {device}; name one: "
            + "; ".join(f"{k.name} ({_refusal(k, spec, n, dtype, device) or 'usable'})" for k in candidates)
        )
    name = choose(
        product_of(spec, n, dtype),
        {k.name: k.estimate(spec, n, dtype, device) for k in usable},
        tables.tuned(device),
        _crossovers(device),
    )
    return next(k for k in usable if k.name == name)


def product_of(spec: Spec, n: int, dtype: np.dtype) -> Product:
    """What is looked up in the tables."""
    core = product_of(spec.core, n, dtype) if isinstance(spec, ExtendedSpec) else None
    return Product(name_of(spec), spec.shape, n, dtype.name, core)


def _crossovers(device: str) -> tuple[Choice, ...]:
    if device == "cpu":
        return ()
    from codegemm.engines import cuda

    return tables.crossovers(cuda.gpu(device).arch)


def _named(spec: Spec, n: int, dtype: np.dtype, device: str, name: str) -> Kernel:
    engine, _, short = name.rpartition(":")
    named = [k for k in registered() if k.name == short and engine in ("", k.engine)]
    if not named:
        known = sorted({k.name for k in registered()})
        raise KernelError(f"kernel {name!r} is unknown; known: {', '.join(known)}")
    here = [k for k in named if k.engine == device.partition(":")[0]]
    if not here:
        raise KernelError(
            f"kernel {name!r} runs on {' and '.join(k.engine for k in named)} and the weight is on {device}: "
            "move it with w.to(...)"
        )
    kernel = kernel_for(here[0], spec)
    reason = _refusal(kernel, spec, n, dtype, device)
    if reason:
        raise KernelError(f"kernel {name!r} can't run here: {reason}")
    return kernel


def _renew_lock() -> None:
    """A child forked while another thread registers must not wait for that thread."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _refusal(kernel: Kernel, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
    if kernel.engine != device.partition(":")[0]:
        return f"the weight is on {device}"
    return kernel.unavailable() or kernel.supports(spec, n, dtype, device)


def _add(kernel: Kernel, replace: bool = False) -> None:
    if kernel.full_name in _registry and not replace:
        raise ValueError(f"kernel {kernel.full_name} is registered already; pass replace=True")
    _registry[kernel.full_name] = kernel
    _changed()


def _changed() -> None:
    global _version
    _version += 1
    _select.cache_clear()


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
            made = entry.load()
            register_kernel(made() if isinstance(made, type) else made)
        except Exception as error:  # somebody else's package must not break this one
            warnings.warn(f"kernel {entry.name!r} of {entry.value!r} was left out: {error}", stacklevel=2)
