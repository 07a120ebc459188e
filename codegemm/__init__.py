"""Multiply by codebook-quantised weights: CodeGEMM's Psumbook kernel and its competitors behind one interface."""

from codegemm import checkpoints
from codegemm.config import CodebookConfig
from codegemm.dispatch import KernelInfo, kernels, register_kernel, unregister_kernel
from codegemm.engines.cpu.library import get_num_threads, set_num_threads
from codegemm.errors import CheckpointError, KernelError
from codegemm.formats.codebook import CodebookSpec, CodebookWeight, concat
from codegemm.formats.e8p import E8PSpec, E8PWeight
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel
from codegemm.products import Plan, linear, matmul, plan
from codegemm.quantize import quantize
from codegemm.storage import load, load_all, save_all
from codegemm.version import __version__
from codegemm.warmup import warmup

__all__ = [
    "CheckpointError",
    "CodebookConfig",
    "CodebookSpec",
    "CodebookWeight",
    "Cost",
    "E8PSpec",
    "E8PWeight",
    "Kernel",
    "KernelError",
    "KernelInfo",
    "Plan",
    "Spec",
    "Weight",
    "__version__",
    "checkpoints",
    "concat",
    "get_num_threads",
    "kernels",
    "linear",
    "load",
    "load_all",
    "matmul",
    "plan",
    "quantize",
    "register_kernel",
    "save_all",
    "set_num_threads",
    "unregister_kernel",
    "warmup",
]
