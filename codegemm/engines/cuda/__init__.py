"""The CUDA engine: arrays on a GPU through CuPy."""

from codegemm.engines.cuda.device import (
    cache_and_memory,
    count,
    measure_bandwidth,
    name,
    parse_device,
    time_call,
    to_device,
    to_host,
    unavailable,
)
from codegemm.kernel import Kernel

KERNELS: list[Kernel] = []

__all__ = [
    "KERNELS",
    "cache_and_memory",
    "count",
    "measure_bandwidth",
    "name",
    "parse_device",
    "time_call",
    "to_device",
    "to_host",
    "unavailable",
]
