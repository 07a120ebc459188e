"""The CPU engine: C++ compiled at first use for this machine, NumPy where there is no compiler."""

from codegemm.engines.cpu.dequant import Dequant, DequantFast
from codegemm.engines.cpu.dequant_dense import DequantDense
from codegemm.engines.cpu.library import get_num_threads, set_num_threads
from codegemm.engines.cpu.psumbook import Psumbook, PsumbookFast
from codegemm.kernel import Kernel

KERNELS: list[Kernel] = [Psumbook(), PsumbookFast(), Dequant(), DequantFast(), DequantDense()]

__all__ = [
    "KERNELS",
    "Dequant",
    "DequantDense",
    "DequantFast",
    "Psumbook",
    "PsumbookFast",
    "get_num_threads",
    "set_num_threads",
]
