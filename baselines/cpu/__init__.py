"""On the CPU."""

from codegemm.baselines.cpu.aqlm import Aqlm
from codegemm.baselines.cpu.dense import Dense, DenseBf16
from codegemm.baselines.cpu.quip import Quip
from codegemm.kernel import Kernel

KERNELS: list[Kernel] = [Dense(), DenseBf16(), Aqlm(), Quip()]
