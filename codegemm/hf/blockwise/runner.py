"""`codegemm.quantize_model`: a folder of a dense model, to one whose layers are quantised for a text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from math import prod
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from codegemm import cache, model_card
from codegemm.destination import Destination, destination
from codegemm.engines.cpu.library import get_num_threads, set_num_threads
from codegemm.formats.format import spec_of
from codegemm.formats.weight import Weight
from codegemm.hf import experts
from codegemm.hf.allocation.candidates import configurations
from codegemm.hf.allocation.runner import Allocation, Budget, checked_bits, measure
from codegemm.hf.blockwise import assembled, report, rows
from codegemm.hf.blockwise.group import SHARDS, Alone, Group, Several, joined, started
from codegemm.hf.blockwise.kept import Kept
from codegemm.hf.blockwise.matrix import Layer
from codegemm.hf.blockwise.run import Run, Settings
from codegemm.hf.blockwise.skeleton import Skeleton
from codegemm.hf.blockwise.streams import Streams, bytes_needed
from codegemm.hf.config import CodegemmConfig
from codegemm.hf.distillation.runner import check_logits, distil
from codegemm.hf.distillation.train import Course, Lessons
from codegemm.hf.generation import device_named, open_tokenizer
from codegemm.hf.matrices import Plan, plan
from codegemm.measuring import conditions, memory
from codegemm.quantize.parts import Parts
from codegemm.quantize.progress import Progress, opener
from codegemm.quantize.stored import digest
from codegemm.torch.tunable import check_tunable
from codegemm.version import __version__

StrPath = str | os.PathLike[str]
LENGTH, TOKENS = 512, 1 << 15
_ADDED = (report.FILE, model_card.CARD)


@dataclass(frozen=True)
class Calibration:
    """The text that a model is quantised for: rows of token ids [rows, length].

    texts: all token ids [tokens] of its files by their names; none where rows were given.
    """

    ids: torch.Tensor
    texts: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def lessons(self, lessons: Lessons) -> tuple[torch.Tensor, Lessons]:
        """Rows to learn from, and the lessons with their length."""
        own = self.texts
        if not own:
            lessons = replace(lessons, length=self.ids.shape[1])
            own = {"calibration": self.ids.flatten()}
        wanted = lessons.steps * lessons.rows * lessons.length
        return rows.shuffled(own, lessons.length, wanted, lessons.seed), lessons

    @property
    def key(self) -> str:
        """Of the tokens."""
        return cache.key(str(tuple(self.ids.shape)), self.ids.numpy().tobytes().hex())


@dataclass(frozen=True)
class QuantizedModel:
    """What became of a model. layers: in the order in which they were quantised. bits_per_weight: over all of them,
    everything counted. resumed: how many of them an earlier run had finished. left_out: files that were not copied.
    state_bytes, block_bytes: what hidden states and the largest block take, the latter in each process.
    """

    path: Path
    layers: tuple[Layer, ...]
    dense: tuple[str, ...]
    source_bytes: int
    target_bytes: int
    tokens: int
    resumed: int = 0
    left_out: tuple[str, ...] = ()
    state_bytes: int = 0
    block_bytes: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Over all quantised matrices."""
        return report.bits_per_weight(self.layers)


def quantize_model(
    source: StrPath,
    target: StrPath,
    config: Any = None,
    *,
    bits: float | None = None,
    calibration: Sequence[StrPath] | torch.Tensor | None = None,
    tokens: int = TOKENS,
    length: int = LENGTH,
    tune: int = 0,
    distill: int | Lessons = 0,
    layers: Mapping[str, Any] | None = None,
    modules_to_not_convert: Sequence[str] | None = None,
    workers: int | None = None,
    spill: bool = False,
    seed: int = 0,
    time_limit: float | None = None,
    device: str = "auto",
    progress: bool | None = None,
    on_layer: Callable[[Layer], None] | None = None,
    keep: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> QuantizedModel:
    """Quantise a model of Hugging Face's for a text, block by block: each matrix for the inputs that the quantised ones
    before it give it, and so that its outputs are near those of the original with the original's inputs.

    source: a folder with config.json, safetensors files (shards or not), of which one block at a time is in memory, and
        a tokenizer where the calibration is of text. Causal models and encoders. target: a folder of the same form,
        which `codegemm.hf` and `codegemm.load_all` read, with a report by layer, `quantization_report.json`, and a
        card, README.md, that says what was measured.
    config, layers, modules_to_not_convert, seed, time_limit: as of `codegemm.hf.CodegemmConfig`.
    bits: of a weight in the mean over all matrices, codebooks and scales counted. Then `config` is a list of
        configurations to choose from (None: a usual list), and each matrix gets the one with which the model's
        predictions should suffer least in all: how much they suffer from errors in one matrix is measured before, on a
        few rows of the calibration. What `layers` names stays as it is named, and counts. All experts of a layer get
        the same.
    calibration: files of UTF-8, or rows of token ids, int64 [rows, length]. None: everything is quantised without.
    tokens: about how many of the texts, as many of each; in rows of `length`.
    tune: steps for each block, before the next one's turn, in which its codebooks and scales are trained to give the
        original block's outputs.
    distill: tokens of the calibration on which codebooks, scales and norms are trained afterwards to give the
        original's predictions (codes stay), or Lessons. That is done by one process.
    workers: processes on this machine, by default one for each GPU, or for each core up to 8. Started by `torchrun`,
        all its processes work together, on several machines, too; the first reads and writes what is kept. The result
        is bit for bit the same for any number of them.
    spill: keep hidden states, 8 bytes for each number, in files beside the target instead of in memory.
    device: `cpu`, `cuda` or `auto`. progress: as of `codegemm.quantize`. on_layer: hears of each layer when it is done.
    keep: leave what is kept beside the target when that is whole: another call, to distil it for instance, goes on from
        there. force: replace an existing target, once all is written. dry_run: say what would be done; nothing is
        computed but, for `bits`, which layer gets which configuration, and nothing is written.

    An expert of a mixture is quantised for the tokens that are routed to it; of fewer than an eighth of its inputs, and
    outside the list of blocks, matrices are quantised without a calibration, which their `Layer` says. Rows of inputs
    longer than ten times the median weigh no more than such.

    What is finished is kept in the folder `.<target>.parts` until the target is whole; the same call goes on from
    there, whenever and however it was stopped.

    ValueError, before anything is computed, for an architecture that is not understood, a text shorter than a row, a
    tokenizer or configuration that doesn't fit, `bits` that can't be met or have no calibration; later, with the
    layer's name, for activations that are no numbers. CheckpointError (one, too) for files that can't be read or
    written, MemoryError where states have no room, ChildProcessError where a worker is lost.
    """
    configs = _configurations(config, bits, calibration)
    asked = CodegemmConfig(configs[0], layers, modules_to_not_convert, seed=seed, time_limit=time_limit)
    asked.check_quantizable()
    folder, where = Path(source), device_named(device).type
    skeleton = Skeleton.open(folder)
    names = experts.names_of(skeleton.model)
    budget = None if bits is None else Budget.of(checked_bits(bits), configs, skeleton.model, asked, names)
    made = plan(skeleton.model, asked, names) if budget is None else budget.made
    text = None if calibration is None else _calibration(skeleton, folder, calibration, tokens, length)
    place = destination(skeleton.source, Path(target), _files(calibration), force, _ADDED)
    settings = Settings(asked.seed, time_limit, where, _count("tune", tune, 0))
    if text is not None and not spill:
        memory.ensure("the calibration's hidden states (--spill keeps them on disk)", _bytes(skeleton, text)[0])
    taught = distill if isinstance(distill, Lessons) else Lessons(distill, length) if distill else None
    if taught is not None or tune:
        _check_training(skeleton, made, text, taught)
    arguments = _Arguments(folder, place.path, asked, settings, text, spill, keep, force, taught)
    several = _workers(workers, where)
    with ExitStack() as stack:
        group = stack.enter_context(joined())
        open_bar = opener(progress if group.leads else False)
        if budget is not None:
            allocation = _allocation(arguments, skeleton, budget, group, open_bar, keep=not dry_run)
            arguments = replace(arguments, config=allocation.applied(), allocation=allocation)
            made = plan(skeleton.model, arguments.config, names)
        if dry_run:
            return _planned(skeleton, made, place, text)
        if isinstance(group, Alone) and several > 1:
            group = stack.enter_context(started(several, _follow, (arguments,)))
        kept = Kept(Parts(place.path))
        with open_bar("quantizing") as bar:
            run = _through(arguments, skeleton, made, group, kept, bar, on_layer)
        done = run.layers
        if group.leads:
            learnt = None
            if arguments.lessons is not None:
                with open_bar("distilling") as bar:
                    learnt = _taught(arguments, skeleton, kept, run.key, bar)
            _write(arguments, skeleton, made, kept, done, learnt)
        group.share(None, 0)  # no process ends before the folder is there
    return QuantizedModel(
        place.path, tuple(done), tuple(made.dense), skeleton.source.nbytes,
        sum(path.stat().st_size for path in place.paths) if group.leads else 0,
        0 if text is None else text.ids.numel(), kept.resumed, place.left_out, *_bytes(skeleton, text),
    )  # fmt: skip


@dataclass(frozen=True)
class _Arguments:
    """What each process is told."""

    folder: Path
    target: Path
    config: CodegemmConfig
    settings: Settings
    text: Calibration | None
    spill: bool
    keep: bool
    force: bool
    lessons: Lessons | None
    allocation: Allocation | None = None


def _follow(arguments: _Arguments) -> None:
    """What every process but the first does."""
    skeleton = Skeleton.open(arguments.folder)
    made = plan(skeleton.model, arguments.config, experts.names_of(skeleton.model))
    group = Several()
    _through(arguments, skeleton, made, group, Kept(Parts(arguments.target)), Progress("", False), None)
    group.share(None, 0)


def _allocation(
    arguments: _Arguments,
    skeleton: Skeleton,
    budget: Budget,
    group: Group,
    open_bar: Callable[[str], Progress],
    *,
    keep: bool,
) -> Allocation:
    """Which matrix gets what; one process measures, and on this machine no other has begun to work."""
    found = None
    if group.leads:
        assert arguments.text is not None
        parts, device = Parts(arguments.target), arguments.settings.device
        with open_bar("measuring layers") as bar, _quiet():
            found = budget.spent(measure(skeleton, budget, arguments.text.ids, parts, device, bar, keep=keep))
    shared: Allocation = group.share(found, 0)
    return shared


def _through(
    arguments: _Arguments,
    skeleton: Skeleton,
    made: Plan,
    group: Group,
    kept: Kept,
    bar: Progress,
    on_layer: Callable[[Layer], None] | None,
) -> Run:
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
        if settings.device == "cpu":
            stack.enter_context(_one_at_a_time())
        streams = way = None
        if text is not None:
            states = _states(kept.parts) if arguments.spill else None
            streams, way = Streams.begin(skeleton, text.ids, group, states)
        run.through(streams, way, begin)
    return run


@dataclass(frozen=True)
class _Taught:
    """weights, norms: as they were learnt, by their names."""

    weights: Mapping[str, Weight]
    norms: Mapping[str, torch.Tensor]
    course: Course


def _taught(arguments: _Arguments, skeleton: Skeleton, kept: Kept, key: str, bar: Progress) -> _Taught:
    """What distillation makes of the quantised weights; this process does it alone."""
    assert arguments.text is not None
    assert arguments.lessons is not None
    text, lessons = arguments.text.lessons(arguments.lessons)
    bar.total(lessons.steps)
    seen = 0

    def heard(step: int, divergence: float) -> None:
        nonlocal seen
        bar.name(f"KL {divergence:.4f}")
        bar.advance(step + 1 - seen)
        seen = step + 1

    state = kept.parts.state(cache.key(key, str(lessons), digest(text.numpy())))
    weights = ((name, kept.weight(name)) for name in kept.stored)
    with _quiet():
        names = experts.names_of(skeleton.model)
        return _Taught(*distil(skeleton, names, weights, text, lessons, state, arguments.settings.device, heard))


def _planned(skeleton: Skeleton, made: Plan, place: Destination, text: Calibration | None) -> QuantizedModel:
    """What would be done."""
    layers = [
        Layer(
            each.name, each.config, each.shape, spec_of(each.shape, each.config).bits_per_weight, 0.0, None, 0, 0, 0.0
        )
        for each in made.matrices.values()
    ]
    before = sum(skeleton.source.tensors[key].nbytes for name in made.by_parameter for key in skeleton.keys[name])
    after = sum(round(each.bits_per_weight * prod(each.shape) / 8) for each in layers)
    return QuantizedModel(
        place.path, tuple(layers), tuple(made.dense), skeleton.source.nbytes, skeleton.source.nbytes - before + after,
        0 if text is None else text.ids.numel(), 0, place.left_out, *_bytes(skeleton, text),
    )  # fmt: skip


def _bytes(skeleton: Skeleton, text: Calibration | None) -> tuple[int, int]:
    """What hidden states and a block take."""
    width = skeleton.model.config.get_text_config().hidden_size
    states = 0 if text is None else bytes_needed(text.ids.numel(), width)
    return states, skeleton.block_bytes()


def _write(
    arguments: _Arguments, skeleton: Skeleton, made: Plan, kept: Kept, done: Sequence[Layer], taught: _Taught | None
) -> None:
    """The folder, with a report of the layers and a card; then what was kept is not needed any more."""
    # It may be there by now.
    place = destination(skeleton.source, arguments.target, [], arguments.force, _ADDED)
    text = arguments.text
    tokens, texts = (0, []) if text is None else (text.ids.numel(), [Path(name).name for name in text.texts])
    said = report.summary(done, tokens, texts)
    told: dict[str, Any] = {"config": arguments.config.config, "tokens": tokens, "texts": texts}
    if arguments.allocation is not None:
        said.append(report.allocated(arguments.allocation))
        told["allocation"] = arguments.allocation.told()
    weights, norms = kept.stored, {}
    if taught is not None and arguments.lessons is not None:
        weights, norms = {name: weight.stored() for name, weight in taught.weights.items()}, dict(taught.norms)
        course = taught.course
        said.append(report.taught(arguments.lessons.tokens, course))
        told["distillation"] = {**asdict(arguments.lessons), **asdict(course)}
    beside = {
        report.FILE: report.content(done, told),
        **model_card.written(arguments.folder, arguments.config.config, said),
    }
    assembled.write(place, kept.parts.work, skeleton, made, arguments.config, weights, norms, beside)
    if not arguments.keep:
        kept.parts.remove()


def _calibration(
    skeleton: Skeleton, folder: Path, given: Sequence[StrPath] | torch.Tensor, tokens: int, length: int
) -> Calibration:
    """Rows of the texts; ValueError or CheckpointError for what can't be."""
    vocabulary = skeleton.model.get_input_embeddings().weight.shape[0]
    if isinstance(given, torch.Tensor):
        if given.dim() != 2 or given.dtype != torch.long or not given.numel():
            raise ValueError(
                f"calibration: {given.dtype} {tuple(given.shape)}, must be token ids, int64 [rows, length]"
            )
        if int(given.max()) >= vocabulary or int(given.min()) < 0:
            raise ValueError(
                f"calibration: token ids from {int(given.min())} to {int(given.max())}, must be below {vocabulary}"
            )
        _check_length(skeleton, given.shape[1])
        return Calibration(given.cpu())
    if isinstance(given, (str, os.PathLike)):
        raise TypeError(f"calibration {str(given)!r}: must be a list of files, or rows of token ids")
    _count("tokens", tokens, 1)
    _check_length(skeleton, _count("length", length, 1))
    ids = rows.encoded(open_tokenizer(folder), _files(given), vocabulary, str(folder))
    return Calibration(rows.spread(ids, length, tokens), ids)


def _configurations(
    config: Any, bits: float | None, calibration: Sequence[StrPath] | torch.Tensor | None
) -> Sequence[Any]:
    """The configuration, or those to choose from for `bits`; ValueError where something is missing for either."""
    if bits is None:
        if config is None:
            raise ValueError("config: None, must name a configuration where there are no `bits` to choose by")
        return (config,)
    if calibration is None:
        raise ValueError(f"bits={bits!r}: there is no calibration to measure layers on")
    return configurations(config)


def _check_length(skeleton: Skeleton, length: int) -> None:
    positions = getattr(skeleton.model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ValueError(f"length={length}: the model has {positions} positions")


def _check_training(skeleton: Skeleton, made: Plan, text: Calibration | None, lessons: Lessons | None) -> None:
    """ValueError where weights can't be trained so: of such formats, of such a model, on such a text."""
    if text is None:
        raise ValueError(f"{'tune' if lessons is None else 'distill'}: there is no calibration to learn from")
    for matrix in made.matrices.values():
        try:
            check_tunable(matrix.config)
        except ValueError as error:
            raise ValueError(f"{matrix.name}: {error}") from None
    if lessons is not None:
        check_logits(skeleton.model)
        _, found = text.lessons(lessons)
        _check_length(skeleton, found.length)


def _files(calibration: Sequence[StrPath] | torch.Tensor | None) -> list[Path]:
    if calibration is None or isinstance(calibration, (torch.Tensor, str, os.PathLike)):
        return []
    return [Path(path) for path in calibration]


def _workers(wanted: int | None, device: str) -> int:
    """How many processes there are to be on this machine."""
    if wanted is not None:
        return _count("workers", wanted, 1)
    return torch.cuda.device_count() if device == "cuda" else min(len(os.sched_getaffinity(0)), SHARDS)


def _count(name: str, value: Any, least: int) -> int:
    """A number as a plain int; ValueError for one that can't be."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r}: must be an integer of at least {least}")
    return int(value)


def _states(parts: Parts) -> Path:
    """Where hidden states are kept on disk."""
    parts.work.mkdir(parents=True, exist_ok=True)
    return parts.work


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Sums are computed by one thread, for by several they could come out otherwise; the quantiser's rows by as many as
    there are, for they don't depend on each other."""
    count = get_num_threads()
    with conditions.threads(1):
        set_num_threads(count)
        yield


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
