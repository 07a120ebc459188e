"""Token ids of texts, as rows of one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from codegemm.hf.evaluation import texts


def encoded(tokenizer: Any, files: Sequence[str | Path], vocabulary: int, model: str) -> dict[str, torch.Tensor]:
    """Token ids [tokens] of files of text by their names, without special ones.

    CheckpointError or ValueError for a file that is none, or empty, and where the model has no such ids.
    """
    tokens = [texts.tokenize(each, tokenizer) for each in texts.read(files)]
    texts.check_vocabulary(tokens, texts.Around(), vocabulary, model)
    return {each.text.name: torch.tensor(each.ids, dtype=torch.long) for each in tokens}


def whole(ids_of: Mapping[str, torch.Tensor], length: int) -> list[torch.Tensor]:
    """All rows [rows, length] of each text; ValueError for one that is shorter."""
    for name, ids in ids_of.items():
        if len(ids) < length:
            raise ValueError(f"{name}: has {len(ids)} tokens, a row of the calibration has {length} (--length)")
    return [ids[: len(ids) // length * length].view(-1, length) for ids in ids_of.values()]


def spread(ids_of: Mapping[str, torch.Tensor], length: int, tokens: int) -> torch.Tensor:
    """Rows [rows, length] of texts, about `tokens` in all: as much of each as of the others while it lasts, and from
    all over it. ValueError for a text that is shorter than a row."""
    rows = whole(ids_of, length)
    counts = _shares([len(each) for each in rows], max(tokens // length, 1))
    taken = [each[torch.arange(count) * len(each) // max(count, 1)] for each, count in zip(rows, counts)]
    return torch.cat(taken)


def shuffled(ids_of: Mapping[str, torch.Tensor], length: int, tokens: int, seed: int) -> torch.Tensor:
    """Rows as of `spread`, in an order of their own; where there are not so many tokens, from the beginning again."""
    rows = []
    generator = torch.Generator().manual_seed(seed)
    left = -(-tokens // length)
    while left > 0:
        part = spread(ids_of, length, left * length)
        rows.append(part[torch.randperm(len(part), generator=generator)])
        left -= len(part)
    return torch.cat(rows)


def _shares(available: Sequence[int], wanted: int) -> list[int]:
    """How many rows of each text, at most those that there are: equal numbers, where that is possible."""
    counts = [0] * len(available)
    while wanted > 0 and any(count < most for count, most in zip(counts, available)):
        open_ones = [i for i, (count, most) in enumerate(zip(counts, available)) if count < most]
        each = max(wanted // len(open_ones), 1)
        for i in open_ones[:wanted]:
            more = min(each, available[i] - counts[i], wanted)
            counts[i], wanted = counts[i] + more, wanted - more
    return counts
