"""The text on its way through the blocks: hidden states of the original model and of the quantised one."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codegemm.errors import CheckpointError
from codegemm.hf.blockwise.group import SHARDS, Group
from codegemm.hf.blockwise.skeleton import Skeleton

_TOKENS = 4096  # that go through a block together


class _Reached(Exception):
    """The first block has its input."""


@dataclass(frozen=True)
class Way:
    """How blocks are called beside the hidden states: other arguments of each, the same for all parts of the text."""

    arguments: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]
    wrapped: bool = False  # whether the model expects tuples of them

    def call(self, number: int, block: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """What a block makes of hidden states [rows, tokens, hidden]."""
        inputs, named = self.given(number, hidden)
        with torch.no_grad():
            found = block(*inputs, **named)
        out: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return out

    def given(self, number: int, hidden: torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments of a block, on the device of the hidden states."""
        others, named = self.arguments[number]
        there = hidden.device
        return (hidden, *_moved(others, there)), {key: _moved(value, there) for key, value in named.items()}


def chunks(rows: int, length: int) -> list[slice]:
    """Parts of so many rows of text, each of the same number: what goes through a block at once."""
    most = max(_TOKENS // length, 1)
    size = next(each for each in range(min(most, rows), 0, -1) if rows % each == 0)
    return [slice(first, first + size) for first in range(0, rows, size)]


def shards(parts: Sequence[slice]) -> list[list[slice]]:
    """The parts in order, in SHARDS heaps, as equal as they can be."""
    edges = [number * len(parts) // SHARDS for number in range(SHARDS + 1)]
    return [list(parts[first:last]) for first, last in pairwise(edges)]


def bytes_needed(tokens: int, hidden: int) -> int:
    """Of the hidden states of both models, in float32."""
    return 2 * 4 * tokens * hidden


@dataclass
class Streams:
    """Hidden states [rows, tokens, hidden] in float32 on the CPU; each process fills in the rows of its own shards."""

    original: torch.Tensor
    quantised: torch.Tensor
    parts: Sequence[Sequence[slice]]  # by shard
    own: Sequence[int]  # shards

    @classmethod
    def begin(cls, skeleton: Skeleton, ids: torch.Tensor, group: Group, folder: Path | None) -> tuple[Streams, Way]:
        """What the first block gets of rows of token ids. folder: where the states are kept; None: in memory."""
        rows, length = ids.shape
        parts = shards(chunks(rows, length))
        own = [number for number in range(SHARDS) if group.owner(number) == group.rank]
        with skeleton.around() as model:
            first = next(part for shard in parts for part in shard)
            width = first_inputs(skeleton, model, ids[first]).shape[-1]
            shape = (rows, length, width)
            filled = [part for number in own for part in parts[number]]
            original, quantised = (_room(shape, folder, filled) for _ in range(2))
            for number in own:
                for part in parts[number]:
                    original[part] = first_inputs(skeleton, model, ids[part])
            last = [part for shard in parts for part in shard][-1]
            way = way_of(skeleton, model, ids[first], ids[last])
        for number in own:  # the others' rows take no memory
            for part in parts[number]:
                quantised[part] = original[part]
        return cls(original, quantised, parts, own), way

    def advance(self, way: Way, number: int, dense: torch.nn.Module, made: torch.nn.Module, device: Any) -> None:
        """Let the text go through a block, as it is and as it is quantised."""
        for shard in self.own:
            for part in self.parts[shard]:
                for states, block in ((self.original, dense), (self.quantised, made)):
                    states[part] = way.call(number, block, states[part].to(device)).to(states.device)


def _room(shape: tuple[int, ...], folder: Path | None, filled: Sequence[slice]) -> torch.Tensor:
    """Hidden states, in memory or in a file without a name, which no process leaves behind however it ends; of rows
    that are not filled nothing is held. CheckpointError where the disk has no room: later nobody could be told."""
    if folder is None:
        return torch.empty(shape)
    row = 4 * prod(shape[1:])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for part in filled:
                os.posix_fallocate(file.fileno(), row * part.start, row * (part.stop - part.start))
            return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
    except OSError as error:
        raise CheckpointError(f"{folder}: no room for the calibration's hidden states: {error.strerror}") from None


def first_inputs(skeleton: Skeleton, model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The hidden states [rows, tokens, hidden] that the first block gets of token ids [rows, tokens]."""
    held: list[torch.Tensor] = []

    def keep(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        held.append(inputs[0] if inputs else named["hidden_states"])
        raise _Reached

    block = model.get_submodule(skeleton.name(0))
    with block.register_forward_pre_hook(keep, with_kwargs=True), torch.no_grad(), suppress(_Reached):
        model(input_ids=ids, **_without_cache(model))
    return held[0]


def way_of(skeleton: Skeleton, model: Any, ids: torch.Tensor, others: torch.Tensor) -> Way:
    """How each block is called: the model is run with blocks that give back what they get.

    ValueError where blocks are called otherwise than once each in their order, and where they get more of the text than
    hidden states: something else for one part of it, ids, than for others.
    """
    for wrapped in (False, True):
        found = _recorded(skeleton, model, ids, wrapped)
        if found is not None:
            if not _same(found, _recorded(skeleton, model, others, wrapped)):
                raise ValueError(f"{type(model).__name__}: its blocks get more of the text than hidden states")
            return Way(found, wrapped)
    raise ValueError(f"{type(model).__name__}: its blocks are not called one after the other with hidden states")


def logits(skeleton: Skeleton, model: Any, way: Way, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """What the model says of token ids [rows, tokens] where its blocks have made `hidden` [rows, tokens, hidden]."""

    def forward(*inputs: Any, **named: Any) -> Any:
        return (hidden,) if way.wrapped else hidden

    with ExitStack() as restored, torch.no_grad():
        for block in model.get_submodule(skeleton.blocks):
            block.forward = forward
            restored.callback(delattr, block, "forward")
        found: torch.Tensor = model(input_ids=ids, **_without_cache(model)).logits
    return found


def _recorded(skeleton: Skeleton, model: Any, ids: torch.Tensor, wrapped: bool) -> list[Any] | None:
    """The arguments of each block; None where the model can't go on with what such blocks give."""
    blocks = model.get_submodule(skeleton.blocks)
    held: list[tuple[int, Any]] = []
    states: list[torch.Tensor] = []

    def instead(number: int) -> Any:
        def forward(*inputs: Any, **named: Any) -> Any:
            if not inputs:
                inputs = (named.pop("hidden_states"),)
            held.append((number, (inputs[1:], named)))
            states.append(inputs[0])
            return (inputs[0],) if wrapped else inputs[0]

        return forward

    with ExitStack() as restored, torch.no_grad():
        for number, block in enumerate(blocks):
            block.forward = instead(number)
            restored.callback(delattr, block, "forward")
        last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        try:
            model(input_ids=ids, **_without_cache(model), **last)
        except (IndexError, TypeError, AttributeError, ValueError, RuntimeError):
            return None
    as_one = all(each.shape == states[0].shape and torch.equal(each, states[0]) for each in states)
    in_turn = [number for number, _ in held] == list(range(len(blocks)))
    return [arguments for _, arguments in held] if as_one and in_turn else None


def _without_cache(model: Any) -> dict[str, Any]:
    return {"use_cache": False} if hasattr(model.config.get_text_config(), "use_cache") else {}


def _same(one: Any, other: Any) -> bool:
    """Whether arguments of blocks are the same, tensors number by number; of other objects their kind."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return not isinstance(one, (int, float, str)) or bool(one == other)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(each, device) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(each, device) for each in value)
    return value
