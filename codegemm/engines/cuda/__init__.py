"""The CUDA engine: kernels in `kernels_cu` compiled at first use by NVRTC, arrays and launches through CuPy."""

from codegemm.engines.cuda.dequant import Dequant
from codegemm.engines.cuda.dequant_dense import DequantDense
from codegemm.engines.cuda.psumbook import Psumbook
from codegemm.kernel import Kernel

KERNELS: list[Kernel] = [Psumbook(), Dequant(), DequantDense()]

__all__ = ["KERNELS", "Dequant", "DequantDense", "Psumbook"]
