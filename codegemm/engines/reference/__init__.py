"""The truth of all tests: float64, NumPy, every format, no cleverness."""

from codegemm.engines.reference.reference import Reference
from codegemm.kernel import Kernel

KERNELS: list[Kernel] = [Reference()]
