"""Folders of models as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from support.models import tiny_llama


def save_quantised(folder: Path, config: str = "m1v4b4g16") -> Any:
    """A model that was quantised while it was loaded, and saved in the folder; the model."""
    from codegemm.hf import AutoModelForCausalLM, CodegemmConfig

    tiny_llama().save_pretrained(folder / "dense")
    entry = CodegemmConfig(config)
    model = AutoModelForCausalLM.from_pretrained(folder / "dense", dtype=torch.float32, quantization_config=entry)
    model.save_pretrained(folder)
    return model
