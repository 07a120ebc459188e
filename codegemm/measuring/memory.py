"""Whether there is memory for what is to be measured: asked before any work, with a lower bound of what it takes."""

from __future__ import annotations

from collections.abc import Iterable

from codegemm.devices import CPU, Device
from codegemm.engines.cpu.device import available_memory
from codegemm.engines.cuda.gpu import cache_and_memory
from codegemm.formats.weight import Spec
from codegemm.kernel import Kernel, Product


def check(what: str, spec: Spec, timed: Iterable[tuple[Kernel, Product]], device: Device, beside: int) -> None:
    """MemoryError unless there is room for a weight, and on `device` to time each of its products by itself.

    beside: bytes that the processor's memory has to hold all the while, like x and what results are compared with.
    """
    packed = spec.packed_bits // 8
    needed = max([packed, *(_least_bytes(kernel, product, device) for kernel, product in timed)])
    if device != CPU:
        ensure(what, needed, device)
    ensure(what, beside + (needed if device == CPU else packed))


def ensure(what: str, needed: int, device: Device = CPU) -> None:
    """MemoryError, with both in one line, unless `device` has so many bytes free."""
    free = available_memory() if device == CPU else cache_and_memory(device)[1]
    if needed > free:
        place = "memory" if device == CPU else f"{device}'s memory"
        raise MemoryError(
            f"{what}: needs at least {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of {place} are free"
        )


def _least_bytes(kernel: Kernel, product: Product, device: Device) -> int:
    """The weight as the kernel holds it, or packed where that is more; the workspace; buffers of x and y; y."""
    spec, (m, k) = product.spec, product.spec.shape
    weight = max(spec.packed_bits, int(kernel.bits_per_weight(spec) * m * k)) // 8
    y = product.n * m * (max(4, product.dtype.itemsize) + 4)
    return weight + kernel.workspace(product, device) + product.x_bytes + y
