"""What an evaluation finds: sums of every window, and what they say of a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codegemm.hf.evaluation import bootstrap
from codegemm.hf.evaluation.texts import Around, Tokens
from codegemm.hf.evaluation.windows import Cut


@dataclass(frozen=True)
class Sums:
    """Of the tokens of a window that count, in nats: minus log likelihood by the model and by the base, KL(base ||
    model), and how many of both models' likeliest tokens are the same. None without a base.

    begin, end: the window's place among the tokens.
    """

    begin: int
    end: int
    predictions: int
    nll: float
    base_nll: float | None = None
    kl: float | None = None
    agreed: float | None = None


@dataclass(frozen=True)
class Cosine:
    """Of a window's mean-pooled embedding, to the base's."""

    begin: int
    end: int
    cosine: float


@dataclass(frozen=True)
class Estimate:
    """A value and, of more than one window, the bounds of its 95 % bootstrap interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Source:
    """Which text, and how many of its tokens were used."""

    name: str
    sha256: str
    tokens: int
    total_tokens: int

    @classmethod
    def of(cls, tokens: Tokens) -> Source:
        """Of a text that was read."""
        return cls(tokens.text.name, tokens.text.sha256, len(tokens.ids), tokens.total)


@dataclass(frozen=True)
class Likelihood:
    """What a causal model makes of a text: over `predictions` tokens, the last five None without a base.

    perplexity: exp of the mean of minus log likelihood, base_perplexity that of the base, ratio theirs; kl: the mean
    KL(base || model) in nats a token; agreement: the share of tokens for which both have the same likeliest one.
    """

    source: Source
    predictions: int
    perplexity: Estimate
    base_perplexity: Estimate | None
    ratio: Estimate | None
    kl: Estimate | None
    agreement: Estimate | None
    windows: tuple[Sums, ...]


@dataclass(frozen=True)
class Similarity:
    """How near an encoder's embeddings of a text's windows are to the base's. least: the smallest cosine."""

    source: Source
    cosine: Estimate
    least: float
    windows: tuple[Cosine, ...]


@dataclass(frozen=True)
class Subject:
    """A model that was evaluated: its name or folder, the configuration that it was quantised to while it was read, if
    it was, and bytes of its weights: as they are, and in float16."""

    name: str
    config: str | None
    dtype: str
    weight_bytes: int
    float16_bytes: int


@dataclass(frozen=True)
class Evaluation:
    """What was found of every text, and how.

    limit: on the tokens used of each text, or None. specials: what stands around every window, as the tokenizer puts it
    around a text. seed: of the bootstrap.
    """

    model: Subject
    base: Subject | None
    device: str
    cut: Cut
    specials: Around
    limit: int | None
    seed: int
    texts: tuple[Likelihood, ...] | tuple[Similarity, ...]


def likelihood(tokens: Tokens, windows: Sequence[Sums], seed: int) -> Likelihood:
    """Of a text, by its windows."""
    has_base = windows[0].base_nll is not None
    sums = np.array([
        (each.predictions, each.nll, *((each.base_nll, each.kl, each.agreed) if has_base else ())) for each in windows
    ], np.float64)  # fmt: skip
    total, drawn = sums.sum(axis=0), bootstrap.resample(sums, seed)

    def estimate(column: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], as_: Function) -> Estimate:
        """Of a function that grows, of a mean over the tokens."""
        bounds = () if drawn is None else bootstrap.interval(column(drawn.T))
        return Estimate(as_(float(column(total))), *map(as_, bounds))

    return Likelihood(
        Source.of(tokens),
        int(total[0]),
        estimate(lambda s: s[1] / s[0], _exp),
        estimate(lambda s: s[2] / s[0], _exp) if has_base else None,
        estimate(lambda s: (s[1] - s[2]) / s[0], _exp) if has_base else None,
        estimate(lambda s: s[3] / s[0], float) if has_base else None,
        estimate(lambda s: s[4] / s[0], float) if has_base else None,
        tuple(windows),
    )


def similarity(tokens: Tokens, windows: Sequence[Cosine], seed: int) -> Similarity:
    """Of a text, by its windows."""
    cosines = np.array([[each.cosine] for each in windows])
    drawn = bootstrap.resample(cosines, seed)
    bounds = () if drawn is None else bootstrap.interval(drawn[:, 0] / len(windows))
    return Similarity(Source.of(tokens), Estimate(float(cosines.mean()), *bounds), float(cosines.min()), tuple(windows))


Function = Callable[[float], float]


def _exp(value: float) -> float:
    """Infinite where a float can't hold it."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
