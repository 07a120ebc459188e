"""On the CPU."""

from codegemm.baselines.cpu.aqlm import Aqlm
from codegemm.baselines.cpu.dense import Dense, DenseBf16, TorchFp32
from codegemm.baselines.cpu.lutgemm import Lutgemm
from codegemm.baselines.cpu.qtip import Qtip
from codegemm.baselines.cpu.quip import Quip
from codegemm.kernel import Kernel

KERNELS: list[Kernel] = [Dense(), TorchFp32(), DenseBf16(), Aqlm(), Quip(), Qtip(), Lutgemm()]
