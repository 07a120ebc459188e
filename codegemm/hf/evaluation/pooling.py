"""One vector of a text, of an encoder: the mean of its tokens' last hidden states."""

from __future__ import annotations

from typing import Any

import torch


def embeddings(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of texts, ids [n, tokens]: the mean [n, width] over all tokens, special ones included, in float64."""
    found: torch.Tensor = model.base_model(input_ids=ids).last_hidden_state
    return found.double().mean(dim=1)


def cosines(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Of vectors [n, width] in float64, one by one; NaN where one is zero, or not finite."""
    found: torch.Tensor = (own * other).sum(-1) / (own.norm(dim=-1) * other.norm(dim=-1))
    return found.clamp(-1, 1)  # which rounding may leave
