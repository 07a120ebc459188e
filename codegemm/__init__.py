"""Multiply by codebook-quantised weights: CodeGEMM's Psumbook kernel and its competitors behind one interface."""

from typing import TYPE_CHECKING, Any

from codegemm.calibration import Calibration
from codegemm.config import CodebookConfig
from codegemm.engines.cpu.library import get_num_threads, set_num_threads
from codegemm.errors import CheckpointError, KernelError
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.formats.e8p import E8PSpec, E8PWeight
from codegemm.formats.extended import ExtendedSpec, ExtendedWeight, concat
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel, Product
from codegemm.products import Plan, linear, matmul, plan
from codegemm.quantize import quantize
from codegemm.registry import KernelInfo, kernels, register_kernel, unregister_kernel
from codegemm.storage import load, load_all, save_all
from codegemm.version import __version__
from codegemm.warmup import warmup

if TYPE_CHECKING:
    from codegemm import checkpoints

__all__ = [
    "Calibration",
    "CheckpointError",
    "CodebookConfig",
    "CodebookSpec",
    "CodebookWeight",
    "Cost",
    "E8PSpec",
    "E8PWeight",
    "ExtendedSpec",
    "ExtendedWeight",
    "Kernel",
    "KernelError",
    "KernelInfo",
    "Plan",
    "Product",
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


def __getattr__(name: str) -> Any:
    """`checkpoints` is imported where it is used: few programs read other projects' files."""
    if name == "checkpoints":
        import importlib

        return importlib.import_module("codegemm.checkpoints")
    raise AttributeError(f"module 'codegemm' has no attribute {name!r}")
