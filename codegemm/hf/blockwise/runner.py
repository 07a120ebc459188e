"""`codegemm.quantize_model`: a folder of a dense model, to one whose layers are quantised for a text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from codegemm import cache, model_card
from codegemm.destination import Destination, destination
from codegemm.hf import experts
from codegemm.hf.blockwise import assembled, report, rows
from codegemm.hf.blockwise.group import SHARDS, Alone, Group, Several, joined, started
from codegemm.hf.blockwise.kept import Kept
from codegemm.hf.blockwise.matrix import Layer
from codegemm.hf.blockwise.run import Run, Settings
from codegemm.hf.blockwise.skeleton import Skeleton
from codegemm.hf.blockwise.streams import Streams, bytes_needed
from codegemm.hf.config import CodegemmConfig
from codegemm.hf.generation import device_named, open_tokenizer
from codegemm.hf.matrices import Plan, plan
from codegemm.measuring import conditions, memory
from codegemm.quantize.parts import Parts
from codegemm.quantize.progress import Progress, opener
from codegemm.version import __version__

StrPath = str | os.PathLike[str]
LENGTH, TOKENS = 512, 1 << 15
_ADDED = (report.FILE, model_card.CARD)


@dataclass(frozen=True)
class Calibration:
    """The text that a model is quantised for: rows of token ids [rows, length], and what they are of.

    texts: the names of its files.
    """

    ids: torch.Tensor
    texts: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Of the tokens."""
        return cache.key(str(tuple(self.ids.shape)), self.ids.numpy().tobytes().hex())


@dataclass(frozen=True)
class QuantizedModel:
    """What became of a model. layers: in the order in which they were quantised. bits_per_weight: over all of them,
    everything counted. resumed: how many of them an earlier run had finished. left_out: files that were not copied."""

    path: Path
    layers: tuple[Layer, ...]
    dense: tuple[str, ...]
    source_bytes: int
    target_bytes: int
    tokens: int
    resumed: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Over all quantised matrices."""
        return report.bits_per_weight(self.layers)


def quantize_model(
    source: StrPath,
    target: StrPath,
    config: Any,
    *,
    calibration: Sequence[StrPath] | torch.Tensor | None = None,
    tokens: int = TOKENS,
    length: int = LENGTH,
    layers: Mapping[str, Any] | None = None,
    modules_to_not_convert: Sequence[str] | None = None,
    workers: int | None = None,
    spill: bool = False,
    seed: int = 0,
    time_limit: float | None = None,
    device: str = "auto",
    progress: bool | None = None,
    on_layer: Callable[[Layer], None] | None = None,
    force: bool = False,
) -> QuantizedModel:
    """Quantise a model of Hugging Face's for a text, block by block, each for the inputs that the quantised blocks
    before it give it.

    """
    asked = CodegemmConfig(config, layers, modules_to_not_convert, seed=seed, time_limit=time_limit).check_quantizable()
    folder, where = Path(source), device_named(device).type
    skeleton = Skeleton.open(folder)
    made = plan(skeleton.model, asked, experts.names_of(skeleton.model))
    text = None if calibration is None else _calibration(skeleton, folder, calibration, tokens, length)
    place = destination(skeleton.source, Path(target), _files(calibration), force, _ADDED)
    settings = Settings(asked.seed, time_limit, where)
    width = skeleton.model.config.get_text_config().hidden_size
    if text is not None and not spill:
        memory.ensure("hidden states of the calibration", bytes_needed(*text.ids.shape, width))
    arguments = _Arguments(folder, place, asked, settings, text, spill, force)
    several = _workers(workers, where)
    with ExitStack() as stack:
        group = stack.enter_context(joined())
        if isinstance(group, Alone) and several > 1:
            group = stack.enter_context(started(several, _follow, (arguments,)))
        kept = Kept(Parts(place.path))
        with opener(progress if group.leads else False)("quantizing") as bar:
            done = _through(arguments, skeleton, made, group, kept, bar, on_layer)
        if group.leads:
            _write(arguments, skeleton, made, kept, done)
        group.share(None, 0)  # no process ends before the folder is there
    return QuantizedModel(
        place.path, tuple(done), tuple(made.dense), skeleton.source.nbytes,
        sum(path.stat().st_size for path in place.paths) if group.leads else 0,
        0 if text is None else text.ids.numel(), kept.resumed, place.left_out,
    )  # fmt: skip


@dataclass(frozen=True)
class _Arguments:
    """What each process is told."""

    folder: Path
    place: Destination
    config: CodegemmConfig
    settings: Settings
    text: Calibration | None
    spill: bool
    force: bool


def _follow(arguments: _Arguments) -> None:
    """What every process but the first does."""
    skeleton = Skeleton.open(arguments.folder)
    made = plan(skeleton.model, arguments.config, experts.names_of(skeleton.model))
    group = Several()
    _through(arguments, skeleton, made, group, Kept(Parts(arguments.place.path)), Progress("", False), None)
    group.share(None, 0)


def _through(
    arguments: _Arguments,
    skeleton: Skeleton,
    made: Plan,
    group: Group,
    kept: Kept,
    bar: Progress,
    on_layer: Callable[[Layer], None] | None,
) -> list[Layer]:
    """Quantise all matrices, together with the other processes."""
    bar.total(sum(rows * columns for rows, columns in (each.shape for each in made.matrices.values())))

    def told(layer: Layer) -> None:
        bar.name(layer.name)
        bar.advance(layer.shape[0] * layer.shape[1])
        if on_layer is not None:
            on_layer(layer)

    settings, text = arguments.settings, arguments.text
    begin = cache.key(__version__, str(settings), "" if text is None else text.key)
    run = Run(skeleton, made, experts.names_of(skeleton.model), settings, group, kept, told)
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        if settings.device == "cpu":  # with more than one thread sums could come out otherwise
            stack.enter_context(conditions.threads(1))
        streams = way = None
        if text is not None:
            states = _states(kept.parts) if arguments.spill else None
            streams, way = Streams.begin(skeleton, text.ids, group, states)
        return run.through(streams, way, begin)


def _write(
    arguments: _Arguments, skeleton: Skeleton, made: Plan, kept: Kept, done: Sequence[Layer]
) -> None:
    """The folder, with a report of the layers and a card; then what was kept is not needed any more."""
    place = destination(arguments.place.model, arguments.place.path, [], arguments.force, _ADDED)  # it may be there by now
    text = arguments.text
    tokens, texts = (0, ()) if text is None else (text.ids.numel(), text.texts)
    said = report.summary(done, tokens, texts)
    told = {"config": arguments.config.config, "tokens": tokens, "texts": list(texts)}
    beside = {
        report.FILE: report.content(done, told),
        **model_card.written(arguments.folder, arguments.config.config, said),
    }
    assembled.write(place, kept.parts.work, skeleton, made, arguments.config, kept.stored, {}, beside)
    kept.parts.remove()


def _calibration(
    skeleton: Skeleton, folder: Path, given: Sequence[StrPath] | torch.Tensor, tokens: int, length: int
) -> Calibration:
    """Rows of the texts; ValueError or CheckpointError for what can't be."""
    positions = getattr(skeleton.model.config.get_text_config(), "max_position_embeddings", None)
    vocabulary = skeleton.model.get_input_embeddings().weight.shape[0]
    if isinstance(given, torch.Tensor):
        if given.dim() != 2 or given.dtype != torch.long or not given.numel():
            raise ValueError(f"calibration: {given.dtype} {tuple(given.shape)}, must be token ids, int64 [rows, length]")
        if int(given.max()) >= vocabulary or int(given.min()) < 0:
            raise ValueError(f"calibration: token ids from {int(given.min())} to {int(given.max())}, must be below {vocabulary}")
        return Calibration(given)
    if positions is not None and length > positions:
        raise ValueError(f"length={length}: the model has {positions} positions")
    texts = {str(path): rows.read(Path(path)) for path in given}
    if not texts:
        raise ValueError("calibration: names no text")
    ids = rows.encoded(open_tokenizer(folder), texts, vocabulary)
    return Calibration(rows.spread(ids, length, tokens), tuple(texts))


def _files(calibration: Sequence[StrPath] | torch.Tensor | None) -> list[Path]:
    return [] if calibration is None or isinstance(calibration, torch.Tensor) else [Path(path) for path in calibration]


def _workers(wanted: int | None, device: str) -> int:
    """How many processes there are to be on this machine."""
    if wanted is not None:
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            raise ValueError(f"workers={wanted!r}: must be an integer of at least 1")
        return wanted
    return torch.cuda.device_count() if device == "cuda" else min(len(os.sched_getaffinity(0)), SHARDS)


def _states(parts: Parts) -> Path:
    """Where hidden states are kept on disk."""
    parts.work.mkdir(parents=True, exist_ok=True)
    return parts.work


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers draws no bar for each block that is read."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
