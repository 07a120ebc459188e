"""The kernels to beat, behind the same interface: dense products, the dequantising kernels of AQLM, QuIP# and QTIP, and
LUT-GEMM's tables."""

if __name__ == "baselines":
    raise ImportError("import this package as codegemm.baselines")

from codegemm.baselines import cpu, cuda
from codegemm.kernel import Kernel

KERNELS: list[Kernel] = [*cpu.KERNELS, *cuda.KERNELS]
