"""Whether there is memory for what is to be measured: asked before any work, with a lower bound of what it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from codegemm.devices import CPU, Device
from codegemm.engines.cpu.device import available_memory
from codegemm.engines.cuda.gpu import cache_and_memory
from codegemm.kernel import Kernel, Product


def check(what: str, timed: Iterable[tuple[Kernel, Product]], device: Device, made: int, beside: int) -> None:
    """MemoryError unless there is room on `device` to time each of these products of one weight by itself.

    Bytes of the processor's memory: made, that are taken when the weight is made; beside, that x and what results are
    compared with take while products are timed.
    """
    needed = max(
        (product.spec.packed_bits // 8 + total([taken(kernel, [product], device)]) for kernel, product in timed),
        default=0,
    )
    ensure_both(what, needed, device, made, beside)


def ensure_both(what: str, needed: int, device: Device, made: int, beside: int) -> None:
    """MemoryError unless `device` has `needed` bytes free, and the processor's memory what `check` says."""
    if device != CPU:
        ensure(what, needed, device)
    ensure(what, max(made, beside + (needed if device == CPU else 0)))


def ensure(what: str, needed: int, device: Device = CPU) -> None:
    """MemoryError, with both in one line, unless `device` has so many bytes free."""
    free = available_memory() if device == CPU else cache_and_memory(device)[1]
    if needed > free:
        place = "memory" if device == CPU else f"{device}'s memory"
        raise MemoryError(
            f"{what}: needs at least {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of {place} are free"
        )


class Taken(NamedTuple):
    """Least bytes beside a packed weight. own: as long as it is there; in_turn: in products, which on the CPU take them
    one after the other."""

    own: int
    in_turn: int


def total(each: Sequence[Taken]) -> int:
    """Of several that are there at the same time."""
    return sum(one.own for one in each) + max((one.in_turn for one in each), default=0)


def taken(kernel: Kernel, products: Sequence[Product], device: Device) -> Taken:
    """Of a weight's form for the kernel where that has more bits, as others may be the weight's own arrays; of every
    product the workspace, y, and on a GPU a plan's room for x and y."""
    spec = products[0].spec
    bits = kernel.bits_per_weight(spec)
    form = bits * spec.out_features * spec.in_features if bits > spec.bits_per_weight else 0
    own = int(form) // 8 + sum(4 * product.n * spec.out_features for product in products)
    workspaces = [kernel.workspace(product, device) for product in products]
    if device == CPU:
        return Taken(own, max(workspaces))
    rows = [product.x_bytes + product.n * spec.out_features * max(4, product.dtype.itemsize) for product in products]
    return Taken(own + sum(workspaces) + sum(rows), 0)
