"""Token ids of texts, as rows of one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from codegemm.errors import CheckpointError


def read(path: Path) -> str:
    """A text in UTF-8; CheckpointError for what is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: {'is a folder, must be a text' if path.is_dir() else error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: byte {error.start} is not UTF-8; must be a text") from None
    if not text.strip():
        raise CheckpointError(f"{path}: is empty")
    return text


def encoded(tokenizer: Any, texts: Mapping[str, str], vocabulary: int) -> dict[str, torch.Tensor]:
    """Token ids [tokens] of each text, without special ones; ValueError where the model has no such ids."""
    found = {}
    for name, text in texts.items():
        ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)
        if len(ids) and int(ids.max()) >= vocabulary:
            raise ValueError(
                f"{name}: the tokenizer gives token {int(ids.max())}, the model has {vocabulary}: not its tokenizer"
            )
        found[name] = ids
    return found


def spread(texts: Mapping[str, torch.Tensor], length: int, tokens: int) -> torch.Tensor:
    """Rows [rows, length] of texts, about `tokens` in all: as much of each as of the others while it lasts, and from all
    over it. ValueError for a text that is shorter than a row."""
    rows = []
    for name, ids in texts.items():
        if len(ids) < length:
            raise ValueError(f"{name}: has {len(ids)} tokens, a row of the calibration has {length} (--length)")
        rows.append(ids[: len(ids) // length * length].view(-1, length))
    counts = _shares([len(each) for each in rows], max(tokens // length, 1))
    taken = [each[torch.arange(count) * len(each) // max(count, 1)] for each, count in zip(rows, counts)]
    return torch.cat(taken)


def shuffled(texts: Mapping[str, torch.Tensor], length: int, tokens: int, seed: int) -> torch.Tensor:
    """Rows as of `spread`, in an order of their own; where there are not so many tokens, from the beginning again."""
    rows = []
    generator = torch.Generator().manual_seed(seed)
    left = -(-tokens // length)
    while left > 0:
        part = spread(texts, length, left * length)
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
