"""Models read the same windows of the same texts, one after the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from codegemm.formats.format import parse
from codegemm.hf import generation
from codegemm.hf.auto import AutoModel, AutoModelForCausalLM
from codegemm.hf.evaluation import pooling, results
from codegemm.hf.evaluation.kinds import Kind, kind_of, positions_of
from codegemm.hf.evaluation.likelihood import NotFinite, per_token
from codegemm.hf.evaluation.results import Cosine, Evaluation, Subject, Sums
from codegemm.hf.evaluation.texts import Around, Tokens, around, check_same, check_vocabulary, read, tokenize
from codegemm.hf.evaluation.windows import LEAST, Window, check_length, cut_for, windows_of
from codegemm.hf.sizes import sizes
from codegemm.quantize import checked_seed
from codegemm.quantize.progress import Progress, opener

_READERS = {Kind.CAUSAL: AutoModelForCausalLM, Kind.ENCODER: AutoModel}
_LOGIT_BYTES, _MOST_WINDOWS = 1 << 28, 16  # of each model at a time


def evaluate(
    model: Any,
    texts: Sequence[str | Path] | Mapping[str, str],
    *,
    base: Any = None,
    tokenizer: Any = None,
    window: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    config: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    progress: bool | Callable[[str], Progress] | None = None,
) -> Evaluation:
    """How well a model predicts texts, and how far it is from another one, its base.

    Of a causal model: perplexity; with a base KL(base || model) and how often both have the same likeliest token. Of an
    encoder, which needs a base: cosines of mean-pooled embeddings. Intervals are of the bootstrap, of whole windows.

    model, base: folders, or models of transformers in evaluation mode. texts: files of UTF-8, or texts by their names.
    tokenizer: of both; without it those of their folders, which must make the same tokens.
    window: tokens that are read at a time; by default 512, or as many as the models have positions where those are
        fewer, or the whole text where that is shorter. stride: tokens from one window to the next, by default all of
        one; each counts in the first window that has it.
    tokens: how many of each text are used, by default all.
    config: to quantise a dense folder `model` while it is read. device, dtype: of folders, as in `codegemm generate`.
    seed: of the bootstrap. progress: as of `codegemm.quantize`.

    ValueError, with the value in the message, for what does not fit together or gives logits that are no numbers,
    CheckpointError (one, too) for files that can't be read.
    """
    if tokens is not None and tokens < LEAST:
        raise ValueError(f"tokens {tokens}: must be {LEAST} or more: one is predicted from another")
    checked_seed(seed)
    if config is not None:
        parse(config)
    sources = read(texts)
    sides = [_Side.of(each, tokenizer) for each in (model, base) if each is not None]
    kind = _common_kind(sides)
    if config is not None:
        _check_dense(sides[0], config)
    read_texts = [tokenize(text, sides[0].tokenizer, tokens) for text in sources]
    specials = around(sides[0].tokenizer)
    if kind is Kind.CAUSAL:
        specials = Around(specials.before)  # what ends a text is not in the middle of one
    for other in sides[1:]:
        _check_tokenizer(other, sides[0], read_texts, specials, kind)
    for side in sides:
        if (rows := _vocabulary(side)) is not None:
            check_vocabulary(read_texts, specials, rows, side.name)
    cut = cut_for(window, stride, _positions(sides, kind), specials)
    if window is not None:
        check_length(read_texts, window)

    where = generation.device_named(device) if isinstance(model, str | Path) else model.device
    for side, asked in zip(sides, (config, None)):
        side.open(where, dtype, asked, kind)
        check_vocabulary(read_texts, specials, side.model.get_input_embeddings().weight.shape[0], side.name)
    begun = bool(specials.before)
    planned = [windows_of(len(each.ids), cut, begun) for each in read_texts]
    found: list[Any] = []
    with opener(progress)("evaluating") as bar, torch.inference_mode():
        bar.total(sum(map(len, planned)))
        for each, windows in zip(read_texts, planned):
            bar.name(Path(each.text.name).name)
            if kind is Kind.CAUSAL:
                sums = list(_likelihoods(sides, each, windows, specials, bar))
                found.append(results.likelihood(each, sums, seed))
            else:
                cosines = list(_cosines(sides, each, windows, specials, bar))
                found.append(results.similarity(each, cosines, seed))
    subjects = [side.subject() for side in sides]
    return Evaluation(
        subjects[0], subjects[1] if base is not None else None, str(where), cut, specials, tokens, seed, tuple(found)
    )


@dataclass
class _Side:
    """A model that takes part; `model` is None before it is opened."""

    name: str
    config: Any
    tokenizer: Any
    model: Any

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> _Side:
        """Of a folder, or of a model itself; nothing large is read."""
        if isinstance(model, str | Path):
            folder = Path(model)
            config = generation.open_config(folder)
            return cls(str(model), config, tokenizer or generation.open_tokenizer(folder), None)
        name = getattr(model, "name_or_path", "") or type(model).__name__
        if model.training:
            raise ValueError(f"{name}: is in training mode, in which models may drop values out: call model.eval()")
        if tokenizer is None and not Path(name).is_dir():
            raise ValueError(f"{name}: is not of a folder here that has a tokenizer: give tokenizer=")
        return cls(name, model.config, tokenizer or generation.open_tokenizer(Path(name)), model)

    def open(self, device: torch.device, dtype: str, config: str | None, kind: Kind) -> None:
        """Read a folder's model."""
        if self.model is None:
            self.model = generation.open_model(Path(self.name), device, dtype, config, _READERS[kind])

    def subject(self) -> Subject:
        """What is told of it."""
        taken, entry = sizes(self.model), getattr(self.model.config, "quantization_config", None)
        dtype = str(self.model.dtype).rpartition(".")[2]
        return Subject(self.name, getattr(entry, "config", None), dtype, taken.held, taken.half)


def _common_kind(sides: Sequence[_Side]) -> Kind:
    """Of both models."""
    kinds = [kind_of(side.config, side.name) for side in sides]
    if len(set(kinds)) > 1:
        told = " and ".join(f"{side.name} is {kind.value}" for side, kind in zip(sides, kinds))
        raise ValueError(f"{told}: models of two kinds can't be compared")
    if kinds[0] is Kind.ENCODER and len(sides) == 1:
        raise ValueError(f"{sides[0].name}: is an encoder, which predicts no text: it needs a base to be compared with")
    return kinds[0]


def _check_dense(side: _Side, config: str) -> None:
    """ValueError where there is nothing to quantise."""
    if side.model is not None:
        raise ValueError(f"config {config}: {side.name} is read already; config is for a folder")
    if getattr(side.config, "quantization_config", None):
        raise ValueError(f"config {config}: {side.name} is quantised already")


def _check_tokenizer(other: _Side, own: _Side, texts: Sequence[Tokens], specials: Around, kind: Kind) -> None:
    """ValueError unless both have the same for these texts; and the same vocabulary to be likely, as told."""
    if other.tokenizer is not own.tokenizer:
        check_same(texts, other.tokenizer, other.name)
        theirs = around(other.tokenizer)
        if theirs.before != specials.before or (kind is Kind.ENCODER and theirs != specials):
            raise ValueError(
                f"{other.name}: its tokenizer puts {theirs.before} before and {theirs.behind} behind a text, that of "
                f"{own.name} {specials.before} and {specials.behind}: models must have the same tokenizer"
            )
    if kind is Kind.CAUSAL:
        widths = [_vocabulary(side) for side in (own, other)]
        if widths[0] is not None and widths[1] is not None:
            _check_widths(own.name, other.name, widths[0], widths[1])


def _vocabulary(side: _Side) -> int | None:
    """The tokens that a model tells apart, as its configuration says, before it is opened."""
    return getattr(side.config.get_text_config(), "vocab_size", None)


def _check_widths(own: str, other: str, own_width: int, other_width: int) -> None:
    if own_width != other_width:
        raise ValueError(
            f"{own} tells {own_width} tokens apart, and {other} {other_width}: models must have the same vocabulary"
        )


def _positions(sides: Sequence[_Side], kind: Kind) -> int | None:
    """The least that the models have. Some encoders have a few more than they can use, which their tokenizer knows."""
    bounds = [positions_of(side.config) for side in sides]
    if kind is Kind.ENCODER:
        bounds += [getattr(side.tokenizer, "model_max_length", None) for side in sides]
    return min((bound for bound in bounds if bound is not None), default=None)


def _likelihoods(
    sides: Sequence[_Side], tokens: Tokens, windows: Sequence[Window], specials: Around, bar: Progress
) -> Iterator[Sums]:
    """Of every window, by one model and, if there is one, the other."""
    rows = sides[0].model.get_input_embeddings().weight.shape[0]
    longest = max(window.end - window.begin for window in windows) + specials.count
    itemsize = sides[0].model.dtype.itemsize
    most = max(1, min(_MOST_WINDOWS, _LOGIT_BYTES // (rows * longest * itemsize)))
    before = len(specials.before)
    for batch in _batches(windows, most):
        ids = _ids(tokens, batch, specials)
        logits = [side.model(input_ids=ids.to(side.model.device), use_cache=False).logits for side in sides]
        if len(sides) > 1:
            _check_widths(sides[0].name, sides[1].name, logits[0].shape[-1], logits[1].shape[-1])
        for number, window in enumerate(batch):
            first = before + window.first - window.begin
            own, *others = (each[number, first - 1 : -1].to(logits[0].device) for each in logits)
            try:
                found = per_token(own, ids[number, first:].to(own.device), *others)
            except NotFinite as error:
                whose = sides[error.of_base].name
                raise ValueError(f"{_place(tokens, window)}: logits of {whose} are NaN or infinite") from None
            sums = (float(each.sum()) for each in found if each is not None)
            yield Sums(window.begin, window.end, window.predictions, *sums)
        bar.advance(len(batch))


def _cosines(
    sides: Sequence[_Side], tokens: Tokens, windows: Sequence[Window], specials: Around, bar: Progress
) -> Iterator[Cosine]:
    """Of every window's embeddings by both models."""
    for batch in _batches(windows, _MOST_WINDOWS):
        ids = _ids(tokens, batch, specials)
        own, other = (_embeddings(side, ids, tokens, batch) for side in sides)
        for window, cosine in zip(batch, pooling.cosines(own, other).tolist()):
            yield Cosine(window.begin, window.end, cosine)
        bar.advance(len(batch))


def _embeddings(side: _Side, ids: torch.Tensor, tokens: Tokens, windows: Sequence[Window]) -> torch.Tensor:
    """ValueError for one that points nowhere."""
    found = pooling.embeddings(side.model, ids.to(side.model.device)).cpu()
    for window, norm in zip(windows, found.norm(dim=-1).tolist()):
        if not 0 < norm < math.inf:
            raise ValueError(f"{_place(tokens, window)}: the embedding of {side.name} is zero, NaN or infinite")
    return found


def _place(tokens: Tokens, window: Window) -> str:
    return f"{tokens.text.name}: window of tokens {window.begin} to {window.end - 1}"


def _batches(windows: Sequence[Window], most: int) -> Iterator[list[Window]]:
    """Neighbours of the same length, at most so many."""
    for _, same in itertools.groupby(windows, key=lambda window: window.end - window.begin):
        alike = list(same)
        for begin in range(0, len(alike), most):
            yield alike[begin : begin + most]


def _ids(tokens: Tokens, windows: Sequence[Window], specials: Around) -> torch.Tensor:
    """Of windows of one length, [n, length], special tokens around them."""
    return torch.tensor([
        [*specials.before, *tokens.ids[window.begin : window.end], *specials.behind] for window in windows
    ])  # fmt: skip
