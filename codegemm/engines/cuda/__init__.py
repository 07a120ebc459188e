"""The CUDA engine: kernels in `kernels_cu` compiled at first use by NVRTC, arrays and launches through CuPy."""

from codegemm.engines.cuda.dequant import Dequant
from codegemm.engines.cuda.device import (
    cache_and_memory,
    count,
    gpu,
    measure_bandwidth,
    name,
    parse_device,
    synchronize,
    time_call,
    to_device,
    to_host,
    unavailable,
    warm_up,
)
from codegemm.engines.cuda.direct import Direct
from codegemm.engines.cuda.library import find_workspace, new_workspace, workspace
from codegemm.engines.cuda.psumbook import Psumbook
from codegemm.engines.cuda.tensors import scope
from codegemm.kernel import Kernel

KERNELS: list[Kernel] = [Psumbook(), Dequant()]

__all__ = [
    "KERNELS",
    "Dequant",
    "Direct",
    "Psumbook",
    "cache_and_memory",
    "count",
    "find_workspace",
    "gpu",
    "measure_bandwidth",
    "name",
    "new_workspace",
    "parse_device",
    "scope",
    "synchronize",
    "time_call",
    "to_device",
    "to_host",
    "unavailable",
    "warm_up",
    "workspace",
]
