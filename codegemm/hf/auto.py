"""transformers' classes that find a model's own, for models of AQLM's, too."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig

from codegemm.hf.aqlm import config_of
from codegemm.hf.config import AQLM

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class _Translating:
    """What reads an entry of AQLM's as one of ours."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As of the class of that name in transformers; models that AQLM quantised are multiplied by this package."""
        hub = {name: kwargs[name] for name in _HUB if name in kwargs}
        if kwargs.get("config") is None and kwargs.get("gguf_file") is None:
            said, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub)
            entry = said.get("quantization_config") or {}
            if entry.get("quant_method") == AQLM:
                trusted = {"trust_remote_code": kwargs["trust_remote_code"]} if "trust_remote_code" in kwargs else {}
                config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **hub, **trusted)
                config.quantization_config = config_of(entry, f"{pretrained_model_name_or_path}: config.json")
                kwargs["config"] = config
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)  # type: ignore[misc]


class AutoModel(_Translating, transformers.AutoModel):  # type: ignore[misc]
    """`transformers.AutoModel`, which knows of quantised models."""


class AutoModelForCausalLM(_Translating, transformers.AutoModelForCausalLM):  # type: ignore[misc]
    """`transformers.AutoModelForCausalLM`, which knows of quantised models."""
