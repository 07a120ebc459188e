"""Multiply by codebook-quantised weights: CodeGEMM's Psumbook kernel and its competitors behind one interface.

What it compiles and which kernels it takes it tells `logging`, by loggers below `codegemm`; the environment variable
CODEGEMM_LOG (debug, info, warning or error) prints that to standard error.
"""

from typing import TYPE_CHECKING, Any

from codegemm import logs
from codegemm.calibration import Calibration
from codegemm.engines.cpu.library import get_num_threads, set_num_threads
from codegemm.errors import CheckpointError, KernelError
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.formats.codebook_config import CodebookConfig
from codegemm.formats.e8p import E8PConfig, E8PSpec, E8PWeight
from codegemm.formats.format import Format, register_format, unregister_format
from codegemm.formats.qtip import QtipConfig, QtipSpec, QtipWeight
from codegemm.formats.rotation import Rotation
from codegemm.formats.transformed import TransformedConfig, TransformedSpec, TransformedWeight
from codegemm.formats.weight import Spec, Weight, concat
from codegemm.kernel import Cost, Kernel, Product
from codegemm.products import Plan, compact, linear, matmul, plan
from codegemm.quantize import quantize
from codegemm.quantize.quantizers import Quantizer, register_quantizer, unregister_quantizer
from codegemm.registry import KernelInfo, kernels, register_kernel, unregister_kernel
from codegemm.storage import load, load_all, save_all
from codegemm.version import __version__
from codegemm.warmup import warmup

if TYPE_CHECKING:
    from codegemm import checkpoints, testing
    from codegemm.comparison.compare import compare
    from codegemm.hf import AutoModelForCausalLM, quantize_model
    from codegemm.quantize.file import quantize_file

logs.set_up()

ExtendedSpec, ExtendedWeight = TransformedSpec, TransformedWeight  # their former names

__all__ = [
    "AutoModelForCausalLM",
    "Calibration",
    "CheckpointError",
    "CodebookConfig",
    "CodebookSpec",
    "CodebookWeight",
    "Cost",
    "E8PConfig",
    "E8PSpec",
    "E8PWeight",
    "ExtendedSpec",
    "ExtendedWeight",
    "Format",
    "Kernel",
    "KernelError",
    "KernelInfo",
    "Plan",
    "Product",
    "QtipConfig",
    "QtipSpec",
    "QtipWeight",
    "Quantizer",
    "Rotation",
    "Spec",
    "TransformedConfig",
    "TransformedSpec",
    "TransformedWeight",
    "Weight",
    "__version__",
    "checkpoints",
    "compact",
    "compare",
    "concat",
    "get_num_threads",
    "kernels",
    "linear",
    "load",
    "load_all",
    "matmul",
    "plan",
    "quantize",
    "register_format",
    "quantize_file",
    "quantize_model",
    "register_kernel",
    "register_quantizer",
    "save_all",
    "set_num_threads",
    "testing",
    "unregister_format",
    "unregister_kernel",
    "unregister_quantizer",
    "warmup",
]


_LATER = {
    "compare": "codegemm.comparison.compare",
    "quantize_file": "codegemm.quantize.file",
    "quantize_model": "codegemm.hf",
    "AutoModelForCausalLM": "codegemm.hf",
}


def __getattr__(name: str) -> Any:
    """What few programs use is imported where they do."""
    import importlib

    if name in ("checkpoints", "testing"):
        return importlib.import_module(f"codegemm.{name}")
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'codegemm' has no attribute {name!r}")
