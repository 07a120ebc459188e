"""transformers' classes that find a model's own, for models of AQLM's, too."""

from __future__ import annotations

import copy
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig

from codegemm.hf.aqlm import config_of
from codegemm.hf.config import AQLM

# What tells where files are, and what is none of the configuration's although that takes it.
_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_OF_MODELS = ("dtype", "torch_dtype", "trust_remote_code", "code_revision", "adapter_kwargs", "quantization_config")


class _Translating:
    """What reads an entry of AQLM's as one of ours."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As of the class of that name in transformers; models that AQLM quantised are multiplied by this package."""
        given, path = kwargs.get("config"), pretrained_model_name_or_path
        hub = {name: kwargs[name] for name in _HUB if name in kwargs}
        if isinstance(given, PreTrainedConfig):
            if _is_aqlm(entry := getattr(given, "quantization_config", None) or {}):
                kwargs["config"] = copy.deepcopy(given)
                kwargs["config"].quantization_config = config_of(entry, "config")
        elif given is None and kwargs.get("gguf_file") is None:
            said, _ = PreTrainedConfig.get_config_dict(path, **hub)
            if _is_aqlm(entry := said.get("quantization_config") or {}):
                kept = {name: kwargs.pop(name) for name in (*_HUB, *_OF_MODELS) if name in kwargs}
                kwargs.pop("config", None)
                trusted = {name: kept[name] for name in ("trust_remote_code",) if name in kept}
                config, others = AutoConfig.from_pretrained(path, return_unused_kwargs=True, **hub, **trusted, **kwargs)
                config.quantization_config = config_of(entry, f"{path}: config.json")
                kwargs = {**others, **kept, "config": config}
        return super().from_pretrained(path, *model_args, **kwargs)  # type: ignore[misc]


def _is_aqlm(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("quant_method") == AQLM


class AutoModel(_Translating, transformers.AutoModel):  # type: ignore[misc]
    """`transformers.AutoModel`, which knows of quantised models."""


class AutoModelForCausalLM(_Translating, transformers.AutoModelForCausalLM):  # type: ignore[misc]
    """`transformers.AutoModelForCausalLM`, which knows of quantised models."""
