"""Whole models of Hugging Face's transformers: loaded, quantised while they are or for a text, saved, evaluated.

transformers knows of this package's models once this is imported; else it loads dense layers of random numbers with no
more than a warning.
"""

from __future__ import annotations

from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from codegemm.hf.auto import AutoModel, AutoModelForCausalLM
from codegemm.hf.blockwise.result import QuantizedModel
from codegemm.hf.blockwise.runner import quantize_model
from codegemm.hf.config import METHOD, CodegemmConfig
from codegemm.hf.distillation.train import Lessons
from codegemm.hf.evaluation.runner import evaluate
from codegemm.hf.experts import CodebookExperts
from codegemm.hf.quantizer import CodegemmHfQuantizer

__all__ = [
    "AutoModel", "AutoModelForCausalLM", "CodebookExperts", "CodegemmConfig", "CodegemmHfQuantizer", "Lessons",
    "QuantizedModel", "evaluate", "quantize_model",
]  # fmt: skip


if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config(METHOD)(CodegemmConfig)
    register_quantizer(METHOD)(CodegemmHfQuantizer)
