"""What a comparison is of: which kernels, on which instruction sets, and which products they multiply."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from codegemm.devices import Device
from codegemm.engines.builds import CompilerError
from codegemm.engines.cpu import compiler, isa
from codegemm.formats.weight import Spec
from codegemm.kernel import Kernel, Product
from codegemm.measuring import memory
from codegemm.measuring.sources import Case
from codegemm.registry import check, kernel_for, refusal, registered

NOT_COMPARED = ("reference",)
# Kernels whose time depends on the shape alone: one row a shape stands for all its weights.
TORCH = ("torch_fp32", "dense_bf16")
DENSE = ("dense", *TORCH)


@dataclass(frozen=True)
class Entry:
    """A kernel and the weight of one configuration, with the products that it multiplies.

    instructions: the set that it is compiled for, or nothing; path: what the kernel makes of that. taken: memory beside
    the packed weight.
    """

    kernel: Kernel
    config: str
    products: tuple[Product, ...]
    instructions: str
    path: str
    taken: memory.Taken


def compared_paths(engine: str, names: Sequence[str] | None) -> list[str]:
    """The instruction sets asked for, or the one that products take; an empty one on a GPU and without a compiler.

    Raises ValueError for one that this processor hasn't, and where nothing can be compiled for it.
    """
    if engine != "cpu":
        if names:
            raise ValueError(f"paths {', '.join(names)}: the engine {engine} has none")
        return [""]
    known = [each.name for each in isa.available()]
    for name in names or ():
        if name not in known:
            raise ValueError(f"path {name!r}: this processor has {', '.join(known)}")
    try:
        compiler.find_compiler()
    except CompilerError as error:
        if names:
            raise ValueError(f"paths {', '.join(names)}: kernels run in NumPy: {error}") from None
        return [""]
    return list(dict.fromkeys(names or [isa.chosen().name]))


def compared_kernels(engine: str, names: Iterable[str | Kernel] | None, precision: str | None = None) -> list[Kernel]:
    """The engine's kernels by name (`psumbook` or `cpu:psumbook`), in the order asked for, without names all but the
    reference; the dense one comes first, since the others are told in its terms. A kernel stands for itself.

    precision: without names, only kernels of that precision, and what they are measured against. Raises ValueError for
    a name or precision that the engine hasn't.
    """
    here = registered(engine)
    known = {name: kernel for kernel in here for name in (kernel.name, kernel.full_name)}
    if names is None:
        kept = [kernel for kernel in here if kernel.name not in NOT_COMPARED]
        chosen = [kernel for kernel in kept if precision in (None, kernel.precision) or kernel.name in DENSE]
        if all(kernel.name in DENSE for kernel in chosen):
            raise ValueError(f"precision {precision!r}: the engine {engine} has no kernel of it")
    else:
        chosen = [_named(name, engine, known) for name in names]
    chosen = list(dict.fromkeys(chosen))
    names = [kernel.name for kernel in chosen]
    for kernel in chosen:
        if names.count(kernel.name) > 1:
            raise ValueError(f"kernel {kernel.name!r}: two of the kernels have that name")
    return sorted(chosen, key=lambda kernel: kernel.name != "dense")


def _named(name: str | Kernel, engine: str, known: dict[str, Kernel]) -> Kernel:
    if not isinstance(name, str):
        check(name)
        if name.engine != engine:
            raise ValueError(f"kernel {name.full_name!r}: the comparison is of the engine {engine}")
        if known.get(name.name, name) is not name:
            raise ValueError(f"kernel {name.name!r}: another one has that name; give yours its own: name = ...")
        return name
    if name not in known:
        names = ", ".join(dict.fromkeys(kernel.name for kernel in known.values()))
        raise ValueError(f"kernel {name!r}: the engine {engine} has {names}")
    return known[name]


def entry(
    case: Case, config: str, kernel: Kernel, batches: Sequence[int], dtype: np.dtype, device: Device, instructions: str
) -> Entry | None:
    """What can be measured of a kernel and a weight; None where that is nothing."""
    spec = case.spec(config)
    kernel = kernel_for(kernel, spec)
    products = (Product.of(spec, n, dtype) for n in batches)
    fitting = tuple(product for product in products if not refusal(kernel, product, device))
    if not fitting:
        return None
    return Entry(kernel, config, fitting, instructions, kernel.path(), memory.taken(kernel, fitting, device))


def refusals(kernel: Kernel, specs: Iterable[Spec], batches: Sequence[int], dtype: np.dtype, device: Device) -> str:
    """Why a kernel multiplies none of these, each reason once."""
    products = [Product.of(spec, n, dtype) for spec in specs for n in batches]
    reasons = (refusal(kernel_for(kernel, product.spec), product, device) for product in products)
    return "; ".join(dict.fromkeys(filter(None, reasons)))
