"""What the engine has to know of a GPU: plain numbers, so that every decision can be made, and tested, without one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from codegemm import devices, kernels_cu
from codegemm.devices import Device
from codegemm.engines.cuda.dependent import MIN_ARCH, most_clusters

LANES = kernels_cu.constant("ptx.cuh", "lanes")  # threads of a warp
CLUSTER = 16  # thread blocks, at most
GRID = (2**31 - 1, 65535, 65535)  # the same along its axes
RESERVED = 1024  # bytes of shared memory that the system takes of each thread block


@dataclass(frozen=True)
class Gpu:
    """Limits and speeds of a GPU.

    arch: compute capability times ten. shared_per_block, shared_per_multiprocessor: bytes that a block may ask for,
    and that there are. clock: Hz. bandwidth: bytes a second of its memory by its data sheet. l2_bytes: its cache.
    round_trip: clocks until what was stored in L2, and counted there, is read by another multiprocessor. clusters: how
    many of 1, 2, .. `CLUSTER` thread blocks run at once, each block with a multiprocessor for itself; empty without
    clusters.
    """

    arch: int
    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int
    threads_per_multiprocessor: int
    clock: float = 1.5e9
    bandwidth: float = 1e12
    l2_bytes: int = 32 << 20
    round_trip: float = 1400.0  # as fitted on an H200 (`WEIGHTS` of the cuts are near one)
    clusters: tuple[int, ...] = ()

    def clusters_of(self, size: int) -> int:
        """Clusters of so many thread blocks that run at once; 0 where there are none."""
        return self.clusters[size - 1] if self.clusters else 0

    def resident(self, warps: int, shared_bytes: int, most_warps: int) -> int:
        """Thread blocks of so many warps that a multiprocessor holds at once, at least one: by shared memory, by
        threads, and by registers that hold `most_warps`."""
        by_shared = self.shared_per_multiprocessor // (shared_bytes + RESERVED)
        return max(1, min(by_shared, self.threads_per_multiprocessor // (LANES * warps), most_warps // warps))


# Multiprocessors lie in groups, not all of them as large, which clusters do not span: as an H200 tells.
_HOPPER_CLUSTERS = (132, 66, 39, 30, 22, 17, 15, 15, 9, 7, 7, 7, 7, 7, 7, 7)

# By data sheet and compute capability, for predictions.
KNOWN = {
    "h200": Gpu(90, 132, 232448, 233472, 2048, 1.98e9, 4.8e12, 60 << 20, clusters=_HOPPER_CLUSTERS),
    "h100": Gpu(90, 132, 232448, 233472, 2048, 1.98e9, 3.35e12, 50 << 20, clusters=_HOPPER_CLUSTERS),
    "a100": Gpu(80, 108, 166912, 167936, 2048, 1.41e9, 2.039e12, 40 << 20),
    "rtx4090": Gpu(89, 128, 101376, 102400, 1536, 2.52e9, 1.008e12, 72 << 20),
    "rtx3090": Gpu(86, 82, 101376, 102400, 1536, 1.7e9, 0.936e12, 6 << 20),
    "b200": Gpu(100, 148, 232448, 233472, 2048, 1.85e9, 8e12, 126 << 20),
    "rtx5090": Gpu(120, 170, 101376, 102400, 1536, 2.41e9, 1.792e12, 96 << 20),
}


@cache
def gpu_of(device: Device) -> Gpu:
    """What decides how a product is cut there, and what it is estimated to take."""
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(device.number)
    arch, shared_per_block = 10 * properties["major"] + properties["minor"], properties["sharedMemPerBlockOptin"]
    # The properties of CUDA 13 have no clocks any more.
    clock = runtime.deviceGetAttribute(runtime.cudaDevAttrClockRate, device.number)
    return Gpu(
        arch=arch,
        multiprocessors=properties["multiProcessorCount"],
        shared_per_block=shared_per_block,
        shared_per_multiprocessor=properties["sharedMemPerMultiprocessor"],
        threads_per_multiprocessor=properties["maxThreadsPerMultiProcessor"],
        clock=1e3 * clock or Gpu.clock,
        bandwidth=devices.bandwidth(device),
        l2_bytes=properties["l2CacheSize"],
        clusters=most_clusters(device.number, range(1, CLUSTER + 1), shared_per_block) if arch >= MIN_ARCH else (),
    )


def cache_and_memory(device: Device) -> tuple[int, int]:
    """Bytes of the GPU's L2 cache and of its free memory."""
    import cupy

    with devices.using(device):
        free, _ = cupy.cuda.runtime.memGetInfo()
    return gpu_of(device).l2_bytes, int(free)
