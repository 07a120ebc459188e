"""LoRA on quantised layers, by PEFT: adapters are trained, the weights stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear

from codegemm.torch.layer import CodebookLinear

__all__ = ["for_layers"]


class CodebookLoraLinear(Linear):  # type: ignore[misc]
    """PEFT's layer of adapters around a CodebookLinear, into whose weight they can't be merged."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """TypeError."""
        raise TypeError("merge: no adapter fits into the codes of a quantised weight; keep it beside, or dequantize()")


def for_layers(config: LoraConfig, model: torch.nn.Module | None = None) -> LoraConfig:
    """Let PEFT find CodebookLinears by a configuration, which is changed and returned: for `get_peft_model`, and for
    `PeftModel.from_pretrained(..., config=)`.

    model: needed for target_modules="all-linear", which then are its CodebookLinears and, as PEFT has it, its
        torch.nn.Linears but for the output head. ValueError where it is missing then, or has no CodebookLinear.
    """
    config._register_custom_module({CodebookLinear: CodebookLoraLinear})
    if isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear":
        config.target_modules = _linear(model)
    return config


def _linear(model: Any) -> set[str]:
    """Names of a model's linear layers."""
    if model is None:
        raise ValueError("target_modules='all-linear': model must be given, whose layers they are")
    kinds = (torch.nn.Linear, CodebookLinear)
    names = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    if not any(isinstance(module, CodebookLinear) for module in names.values()):
        raise ValueError("model: has no CodebookLinear; LoraConfig is enough for it as it is")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {name for name, module in names.items() if module is not head}
