"""What logits say of the tokens that came, and of another model's logits."""

from __future__ import annotations

from typing import NamedTuple

import torch

_NUMBERS = 1 << 22  # logits in float64 at a time: of a large vocabulary, those of a window would take gigabytes


class PerToken(NamedTuple):
    """Of each token [n], in float64 and nats: minus its log likelihood, the base's, KL(base || model), and whether the
    likeliest tokens of both are the same, as 0 or 1. The last three are None without a base."""

    nll: torch.Tensor
    base_nll: torch.Tensor | None
    kl: torch.Tensor | None
    agreed: torch.Tensor | None


class NotFinite(ValueError):
    """Logits that are NaN or infinite; `of_base` says whose."""

    def __init__(self, of_base: bool) -> None:
        super().__init__("logits are not finite")
        self.of_base = of_base


def per_token(logits: torch.Tensor, targets: torch.Tensor, base: torch.Tensor | None = None) -> PerToken:
    """Of logits [n, vocabulary] of any float dtype and the tokens [n] that came; base: the other model's logits.

    NotFinite for a NaN or an infinity among them.
    """
    rows = max(1, _NUMBERS // logits.shape[1])
    parts = [
        _chunk(
            logits[begin : begin + rows], targets[begin : begin + rows], base if base is None else base[begin:][:rows]
        )
        for begin in range(0, len(targets), rows)
    ]
    return PerToken(*(None if column[0] is None else torch.cat(column).cpu() for column in zip(*parts)))


def _chunk(logits: torch.Tensor, targets: torch.Tensor, base: torch.Tensor | None) -> PerToken:
    own, nll = _logarithms(logits, targets, of_base=False)
    if base is None:
        return PerToken(nll, None, None, None)
    likeliest = own.argmax(-1)
    other, base_nll = _logarithms(base, targets, of_base=True)
    agreed = likeliest == other.argmax(-1)
    kl = (other.exp() * (other - own)).sum(-1)
    return PerToken(nll, base_nll, kl, agreed.double())


def _logarithms(logits: torch.Tensor, targets: torch.Tensor, of_base: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the likelihoods of all tokens, and minus those of the targets."""
    if not torch.isfinite(logits).all():
        raise NotFinite(of_base)
    found = torch.log_softmax(logits.double(), dim=-1)
    return found, -found.gather(-1, targets[:, None])[:, 0]
