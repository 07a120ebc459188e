"""On a GPU; the kernels' sources are in kernels_cu."""

from codegemm.baselines.cuda.aqlm import Aqlm
from codegemm.baselines.cuda.dense import Dense
from codegemm.baselines.cuda.lutgemm import Lutgemm
from codegemm.baselines.cuda.qtip import Qtip
from codegemm.baselines.cuda.quip import Quip
from codegemm.kernel import Kernel

KERNELS: list[Kernel] = [Dense(), Aqlm(), Quip(), Qtip(), Lutgemm()]
