"""An evaluation as a table, and as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from codegemm.hf.evaluation.bootstrap import LEVEL, RESAMPLES
from codegemm.hf.evaluation.results import Estimate, Evaluation, Likelihood, Similarity, Subject
from codegemm.reporting import counted, open_console, print_table
from codegemm.version import __version__

_FEW = 10  # windows, of which intervals are too narrow
_MOST_WINDOWS = 4096  # of a text, that files list one by one

Cell = tuple[str, str]  # a value, and its interval below


def print_evaluation(found: Evaluation) -> None:
    """A row for each text with the intervals below it, and what is to be known beside it."""
    console = open_console()
    for title, subject in (("model", found.model), ("base", found.base)):
        if subject is not None:
            console.print(f"{title}: {_described(subject)}")
    names = _short_names([each.source.name for each in found.texts])
    if isinstance(found.texts[0], Likelihood):
        headings, rows = _likelihoods(names, found)
        title = "likelihood of texts"
    else:
        headings = ["text", ">windows", ">cosine", ">least"]
        rows = [_similarity(name, each) for name, each in zip(names, found.texts) if isinstance(each, Similarity)]
        title = "embeddings beside the base's"
    lines: list[list[str] | None] = []
    for row in rows:
        lines += [[cell[part] for cell in row] for part in (0, 1) if any(cell[part] for cell in row)]
        lines.append(None)
    print_table(console, title, headings, lines, (None, ">base's"))
    for line in notes(found):
        console.print(line)


def notes(found: Evaluation) -> list[str]:
    """What the numbers mean, a line each."""
    cut, specials = found.cut, found.specials.count
    beside = f", {counted(specials, 'special token')} around each" if specials else ""
    said = [f"windows of {counted(cut.window, 'token')}, stride {cut.stride}{beside}"]
    if found.limit is not None:
        said.append(f"of each text at most the first {found.limit:,} tokens are used")
    if isinstance(found.texts[0], Likelihood):
        said.append(
            "tokens: those that were predicted; a window's first one is not, unless a special token is before it"
        )
        if found.base is not None:
            said.append("KL(base || model): mean nats a token; top-1: both models' likeliest tokens are the same")
    else:
        said.append("embeddings: the mean of a window's last hidden states, special tokens included")
    if all(len(each.windows) < 2 for each in found.texts):
        return [*said, "no intervals: each text has one window only"]
    told = f"intervals: {LEVEL:.0%}, bootstrap of whole windows, {RESAMPLES} times, seed {found.seed}"
    least = min(len(each.windows) for each in found.texts)
    if least < _FEW:
        told += f"; of {counted(least, 'window')} they are too narrow" if least > 1 else "; none of one window"
    return [*said, told]


def as_json(found: Evaluation) -> dict[str, Any]:
    """Plain data: everything, the sums of windows included where these are not too many."""
    causal = isinstance(found.texts[0], Likelihood)
    texts = []
    for each in found.texts:
        told = {name: value for name, value in vars(each).items() if name not in ("source", "windows")}
        windows = [vars(window) for window in each.windows] if len(each.windows) <= _MOST_WINDOWS else None
        texts.append({**vars(each.source), "window_count": len(each.windows), **told, "windows": windows})
    return {
        "codegemm": __version__, **{name: version(name) for name in ("torch", "transformers", "numpy")},
        "kind": "causal" if causal else "encoder", "pooling": None if causal else "mean",
        "model": found.model, "base": found.base, "device": found.device,
        "window": found.cut.window, "stride": found.cut.stride, "special_tokens": found.specials,
        "token_limit": found.limit,
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL, "seed": found.seed, "unit": "window"},
        "texts": texts,
    }  # fmt: skip


def number(value: float, digits: int = 4) -> str:
    """With so many digits, or all before the point; from a million on with powers of ten."""
    if not math.isfinite(value) or abs(value) >= 10**6:
        return f"{value:.3g}"
    return f"{value:,.{max(digits - 1 - _magnitude(value), 0)}f}"


def _magnitude(value: float) -> int:
    """Of the first digit, at least that of thousandths: of what is smaller, digits say nothing."""
    return max(math.floor(math.log10(abs(value))), -3) if value else 0


def share(value: float) -> str:
    """In percent, without the sign."""
    return f"{100 * value:.1f}"


def cosine(value: float) -> str:
    """Near 1, where the last digits tell."""
    return f"{value:.4f}"


def _likelihoods(names: Sequence[str], found: Evaluation) -> tuple[list[str], list[list[Cell]]]:
    headings = ["text", ">tokens", ">perplexity"]
    if found.base is not None:
        headings += [">base's", ">x base's", ">KL", ">top-1 %"]
    rows = []
    for name, each in zip(names, found.texts):
        assert isinstance(each, Likelihood)
        row = [(name, ""), (f"{each.predictions:,}", ""), _cell(each.perplexity)]
        if each.base_perplexity is not None:
            row.append((number(each.base_perplexity.value), ""))
        for value, told in ((each.ratio, number), (each.kl, _nats), (each.agreement, share)):
            row += [] if value is None else [_cell(value, told)]
        rows.append(row)
    return headings, rows


def _similarity(name: str, each: Similarity) -> list[Cell]:
    return [(name, ""), (f"{len(each.windows):,}", ""), _cell(each.cosine, cosine), (cosine(each.least), "")]


def _nats(value: float) -> str:
    return number(value, 3)


def _cell(value: Estimate, told: Callable[[float], str] = number) -> Cell:
    if value.low is None or value.high is None:
        return told(value.value), ""
    return told(value.value), f"{told(value.low)}-{told(value.high)}"


def _short_names(names: Sequence[str]) -> list[str]:
    """Without their folders where they differ without them."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _described(subject: Subject) -> str:
    """A model, on a line."""
    config = f", {subject.config}" if subject.config else ""
    size = f"{subject.weight_bytes / 1e6:,.1f} MB (in float16 {subject.float16_bytes / 1e6:,.1f} MB)"
    return f"{subject.name}{config}, computed in {subject.dtype}, weights {size}"
