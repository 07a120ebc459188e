"""The CUDA engine: arrays on a GPU through CuPy."""

from codegemm.engines.cuda.device import parse_device, to_device, to_host, unavailable
from codegemm.kernel import Kernel

KERNELS: list[Kernel] = []

__all__ = ["KERNELS", "parse_device", "to_device", "to_host", "unavailable"]
