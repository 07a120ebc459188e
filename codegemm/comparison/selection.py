"""Which kernels a comparison is of, and which instruction sets."""

from __future__ import annotations

from collections.abc import Sequence

from codegemm.engines.cpu import isa
from codegemm.kernel import Kernel
from codegemm.registry import registered

NOT_COMPARED = ("reference",)
# Kernels whose time depends on the shape alone: one row a shape stands for all its weights.
DENSE = ("dense", "dense_bf16")


def compared_paths(engine: str, names: Sequence[str] | None) -> list[str]:
    """The instruction sets asked for, or the one that products take; on a GPU an empty one.

    Raises ValueError for one that this processor hasn't.
    """
    if engine != "cpu":
        if names:
            raise ValueError(f"paths {', '.join(names)}: the engine {engine} has none")
        return [""]
    known = [each.name for each in isa.available()]
    for name in names or ():
        if name not in known:
            raise ValueError(f"path {name!r}: this processor has {', '.join(known)}")
    return list(dict.fromkeys(names or [isa.chosen().name]))


def compared_kernels(engine: str, names: Sequence[str] | None, precision: str | None = None) -> list[Kernel]:
    """The engine's kernels by name (`psumbook` or `cpu:psumbook`), in the order asked for, without names all but the
    reference; the dense one comes first, since the others are told in its terms.

    precision: without names, only kernels of that precision, and what they are measured against. Raises ValueError for
    a name that the engine hasn't.
    """
    here = registered(engine)
    known = {name: kernel for kernel in here for name in (kernel.name, kernel.full_name)}
    if names is None:
        kept = [kernel for kernel in here if kernel.name not in NOT_COMPARED]
        chosen = [kernel for kernel in kept if precision in (None, kernel.precision) or kernel.name in DENSE]
    else:
        for name in names:
            if name not in known:
                raise ValueError(f"kernel {name!r}: the engine {engine} has {', '.join(each.name for each in here)}")
        chosen = [known[name] for name in names]
    return sorted(dict.fromkeys(chosen), key=lambda kernel: kernel.name != "dense")
