"""Text of a model's folder: what is read of it, what is asked before, and how long reading and writing took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from codegemm import devices
from codegemm.devices import Device
from codegemm.errors import CheckpointError
from codegemm.files import File
from codegemm.hf.auto import AutoModelForCausalLM
from codegemm.hf.config import CodegemmConfig
from codegemm.hf.decoding import Decoder
from codegemm.measuring import memory
from codegemm.shards import few

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_NAMED = 3
# What is one line as it is; where a file is not as usual, transformers raises anything.
_TOLD = (ValueError, OSError, ImportError, MemoryError, torch.OutOfMemoryError)


@dataclass
class Speed:
    """Tokens that were read at once and written one by one, and the seconds of both; the first that is written comes
    with reading."""

    prompt_tokens: int
    prefill_seconds: float = 0.0
    new_tokens: int = 0
    decode_seconds: float = 0.0

    @property
    def prefill(self) -> float:
        """Tokens a second; 0 before there were any."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode(self) -> float:
        """Tokens a second behind the first; 0 before there were any."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0


def device_named(name: str) -> torch.device:
    """`cpu` or `cuda`; `auto` is a GPU where there is one that torch and CuPy find. ValueError where there is none."""
    reason = devices.unavailable() or (None if torch.cuda.is_available() else "torch finds no GPU")
    if name == "cuda" and reason:
        raise ValueError(f"cuda: {reason}")
    return torch.device("cpu" if name == "cpu" or reason else "cuda")


def open_config(folder: Path) -> Any:
    """A model's configuration; CheckpointError for a folder that holds none."""
    from transformers import AutoConfig

    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: has no config.json: must be a model's folder, as save_pretrained writes it")
    with _read_by_transformers(folder):
        return AutoConfig.from_pretrained(str(folder), local_files_only=True)


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder; CheckpointError where there is none."""
    from transformers import AutoTokenizer

    reason = "no tokenizer"
    if any((folder / name).is_file() for name in _VOCABULARIES):
        try:
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:
            reason = f"its tokenizer can't be read: {[*str(error).splitlines(), ''][0]}"
    raise CheckpointError(f"{folder}: {reason}: copy tokenizer.json and tokenizer_config.json of the original there")


def open_model(
    folder: Path,
    device: torch.device,
    dtype: str = "auto",
    config: str | None = None,
    kind: type = AutoModelForCausalLM,
) -> Any:
    """A model on a device, as a class of `codegemm.hf.auto` reads it; config: to quantise a dense one.

    dtype: of `DTYPES`, or `auto`: the folder's own on a GPU, float32 on a processor. MemoryError, before anything is
    read, where not even the files have room; CheckpointError where they lack some of the model.
    """
    files = [File(path) for path in sorted(folder.glob("*.safetensors"))]  # which says what is wrong with one
    taken = sum(file.path.stat().st_size for file in files)
    if config is None:
        memory.ensure(str(folder), taken, Device.parse(device.type))
    if dtype == "auto":
        dtype = "float32" if device.type == "cpu" else "auto"
    asked = {} if config is None else {"quantization_config": CodegemmConfig(config)}
    with _read_by_transformers(folder):
        model, told = kind.from_pretrained(  # type: ignore[attr-defined]
            str(folder), dtype=DTYPES.get(dtype, "auto"), local_files_only=True, output_loading_info=True, **asked
        )
    _check_complete(folder, told["missing_keys"])
    return model.eval().to(device)


@contextmanager
def _read_by_transformers(folder: Path) -> Iterator[None]:
    """CheckpointError where a folder's files make transformers fail in ways of its own."""
    try:
        yield
    except _TOLD:
        raise
    except Exception as error:
        said = [*str(error).splitlines(), ""][0]
        raise CheckpointError(f"{folder}: transformers can't read it: {type(error).__name__}: {said}") from error


def _check_complete(folder: Path, missing: Iterable[str]) -> None:
    """CheckpointError for parameters that the files lack, which transformers makes up with a warning. A pooler, which
    makes one vector of a text, is of other models than those that talk, and nothing here reads it."""
    lacking = sorted(name for name in missing if "pooler" not in name.split("."))
    if lacking:
        raise CheckpointError(f"{folder}: its files lack {len(lacking)} tensors: {few(lacking, _NAMED)}")


def encode(tokenizer: Any, prompt: str, raw: bool = False) -> torch.Tensor:
    """Token ids [1, at least 1] of a prompt: as a user's message where the tokenizer has a chat template, or raw."""
    if tokenizer.chat_template and not raw:
        messages = [{"role": "user", "content": prompt}]
        found = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        found = tokenizer(prompt, return_tensors="pt")
    ids: torch.Tensor = found["input_ids"].long()
    if not ids.numel():
        raise ValueError(f"prompt {prompt!r}: has no token")
    return ids


def check_room(config: Any, prompt_tokens: int, count: int) -> None:
    """ValueError for a text that is longer than a model of this configuration has positions."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is None or prompt_tokens + count - 1 <= positions:
        return
    said = f"a prompt of {prompt_tokens} tokens and {count} new ones: the model has {positions} positions"
    left = positions - prompt_tokens + 1
    helps = f"--max-new-tokens {left} is the most" if left > 0 else f"shorten the prompt to {positions} tokens or fewer"
    raise ValueError(f"{said}: {helps}")


def ends(model: Any) -> set[int]:
    """Token ids that end a text, by the model's generation configuration."""
    found = model.generation_config.eos_token_id
    return set() if found is None else {found} if isinstance(found, int) else set(found)


def timed_tokens(decoder: Decoder, prompt: torch.Tensor, count: int, eos: set[int], speed: Speed) -> Iterator[int]:
    """The tokens that follow one prompt, at most so many, without those that end it; `speed` tells how long they took
    so far."""
    stream = decoder.tokens(prompt, count, eos=eos)
    while True:
        begin = time.perf_counter()
        token = next(stream, None)
        seconds = time.perf_counter() - begin
        if token is None:
            return
        if speed.new_tokens:
            speed.decode_seconds += seconds
        else:
            speed.prefill_seconds = seconds
        speed.new_tokens += 1
        if token[0] not in eos:
            yield token[0]
