"""The kernels to beat, behind the same interface: dense products, and the dequantising kernels of AQLM and QuIP#."""

if __name__ == "baselines":
    raise ImportError("import this package as codegemm.baselines")

from codegemm.baselines.aqlm import Aqlm
from codegemm.baselines.aqlm_cuda import AqlmCuda
from codegemm.baselines.dense import Dense, DenseBf16
from codegemm.baselines.dense_cuda import DenseCuda, DequantDenseCuda
from codegemm.baselines.dequant_dense import DequantDense
from codegemm.baselines.quip import Quip
from codegemm.baselines.quip_cuda import QuipCuda
from codegemm.kernel import Kernel

KERNELS: list[Kernel] = [
    Dense(),
    DenseBf16(),
    DenseCuda(),
    DequantDense(),
    DequantDenseCuda(),
    Aqlm(),
    AqlmCuda(),
    Quip(),
    QuipCuda(),
]
