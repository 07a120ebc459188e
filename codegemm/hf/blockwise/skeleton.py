"""A model without numbers, and its blocks: the numbers of one are read from the files when it is its turn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from codegemm.errors import CheckpointError
from codegemm.hf.generation import open_config
from codegemm.shards import Model, few, open_model, read_config

_NAMED = 5


@dataclass(frozen=True)
class Skeleton:
    """model: of transformers, on the meta device but for buffers that no file holds. source: its files.

    keys: of each parameter the tensors in the files that it is made of. conversions: how, as transformers has it.
    blocks: the name of the list of blocks that text passes through.
    """

    model: Any
    source: Model
    keys: Mapping[str, Sequence[str]]
    conversions: Sequence[Any]
    blocks: str

    @classmethod
    def open(cls, folder: Path) -> Skeleton:
        """Of a folder with config.json and safetensors files.

        CheckpointError or ValueError where the architecture is not understood: one that transformers does not know, an
        encoder with a decoder, no list of blocks; where files lack tensors or have another model's; and for a model
        that is quantised already.
        """
        config = open_config(folder)
        if getattr(config, "quantization_config", None):
            method = config.quantization_config.get("quant_method")
            raise ValueError(f"{folder}: is quantised already ({method!r}); take the model that it was made of")
        source, model = open_model(folder), _empty(folder, config)
        conversions = get_model_conversion_mapping(model)
        keys = _keys(model, source, conversions)
        return cls(model, source, keys, conversions, _blocks(folder, model))

    @property
    def described(self) -> str:
        """What the files say of the model beside its numbers."""
        return json.dumps(read_config(self.source.folder or Path()), sort_keys=True)

    @property
    def count(self) -> int:
        """Of the blocks."""
        return len(self.model.get_submodule(self.blocks))

    def name(self, number: int) -> str:
        """Of a block."""
        return f"{self.blocks}.{number}"

    @contextmanager
    def around(self) -> Iterator[Any]:
        """The model with the numbers of all but its blocks, in float32."""
        begin = f"{self.blocks}."
        with self._held([name for name in self.keys if not name.startswith(begin)]):
            yield self.model

    @contextmanager
    def whole(self) -> Iterator[Any]:
        """The model with all its numbers, in float32."""
        with self._held(list(self.keys)):
            yield self.model

    @contextmanager
    def block(self, number: int) -> Iterator[torch.nn.Module]:
        """A block with its numbers, in float32."""
        begin = f"{self.name(number)}."
        with self._held([name for name in self.keys if name.startswith(begin)]):
            yield self.model.get_submodule(self.name(number))

    def block_bytes(self) -> int:
        """Of the largest block twice, as it is and as it is quantised, in float32."""
        sizes = (sum(each.numel() for each in block.parameters()) for block in self.model.get_submodule(self.blocks))
        return 8 * max(sizes)

    @contextmanager
    def _held(self, names: Sequence[str]) -> Iterator[None]:
        """Parameters and buffers in place, and on the meta device again afterwards."""
        wanted = {key for name in names for key in self.keys[name]}
        load = LoadStateDictConfig(dtype=torch.float32, device_map={"": "cpu"}, weight_mapping=list(self.conversions))
        with ExitStack() as files:
            state: dict[str, Any] = {}
            for file in self.source.files:
                here = wanted & file.tensors.keys()
                if here:
                    opened = files.enter_context(safe_open(file.path, framework="pt"))
                    state |= {key: opened.get_slice(key) for key in here}
            convert_and_load_state_dict_in_model(self.model, state, load)
        try:
            self.model.tie_weights()
            yield
        finally:
            for name in names:
                owner, _, own = name.rpartition(".")
                module = self.model.get_submodule(owner)
                held = module._parameters if own in module._parameters else module._buffers
                if held[own] is not None:
                    empty = held[own].detach().to("meta")
                    held[own] = torch.nn.Parameter(empty, requires_grad=False) if held is module._parameters else empty
            self.model.tie_weights()


def check_logits(asked: str, model: Any) -> None:
    """ValueError, for what is asked, where a model gives no predictions of words."""
    if model.get_output_embeddings() is None:
        raise ValueError(f"{asked}: {type(model).__name__} gives no logits, by which it could be compared")


def _empty(folder: Path, config: Any) -> Any:
    """The model that a folder's configuration names, in float32, on the meta device."""
    import transformers

    named = getattr(config, "architectures", None) or []
    kind = next((getattr(transformers, name) for name in named if hasattr(transformers, name)), None)
    if kind is None:
        said = f"architectures {named}" if named else "no architectures"
        raise ValueError(f"{folder}: config.json names {said}: none that transformers knows")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{folder}: {named[0]} is an encoder with a decoder; models of one list of blocks are understood"
        )
    with torch.device("meta"):
        model = kind._from_config(config, dtype=torch.float32).eval()
    for name, buffer in model.named_non_persistent_buffers():
        owner, _, own = name.rpartition(".")
        model.get_submodule(owner)._buffers[own] = torch.empty_like(buffer, device="cpu")
    for module in {name.rpartition(".")[0]: None for name, _ in model.named_non_persistent_buffers()}:
        model._init_weights(model.get_submodule(module))
    return model.requires_grad_(False)


def _keys(model: Any, source: Model, conversions: Sequence[Any]) -> dict[str, list[str]]:
    """Of each parameter or buffer, tensors of the files."""
    expected = model.state_dict()
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    found: dict[str, list[str]] = {}
    for key in source.tensors:
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, expected)
        if name not in expected and pattern is None:
            name, _ = rename_source_key(key, [], [], model.base_model_prefix, expected)
        if name in expected:
            found.setdefault(name, []).append(key)
    tied = {name for pair in (getattr(model, "all_tied_weights_keys", None) or {}).items() for name in pair}
    missing = [name for name in expected if name not in found and name not in tied]
    if missing:
        raise CheckpointError(f"{source.path}: its files lack {len(missing)} tensors: {few(missing, _NAMED)}")
    return found


def _blocks(folder: Path, model: Any) -> str:
    """The list of blocks of the model, or of its part for text: the longest with linear layers in it."""
    text = model.config.get_text_config()
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == getattr(text, "num_hidden_layers", len(module))
        and all(any(isinstance(part, torch.nn.Linear) for part in block.modules()) for block in module)
    }
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if not outermost:
        raise ValueError(f"{folder}: {type(model).__name__} has no list of blocks with linear layers in them")
    named = [name for name in outermost if "vision" not in name and "visual" not in name and "audio" not in name]
    return max(named or outermost, key=lambda name: len(lists[name]))
