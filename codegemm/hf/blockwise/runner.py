"""`codegemm.quantize_model`: a folder of a dense model, to one whose layers are quantised for a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from codegemm import cache, model_card
from codegemm.counts import count
from codegemm.destination import destination
from codegemm.hf import experts
from codegemm.hf.allocation.runner import Allocation, Budget, checked_bits, measure
from codegemm.hf.blockwise import assembled, report
from codegemm.hf.blockwise.checks import check_trainable, configurations_of, workers_for
from codegemm.hf.blockwise.group import Alone, Group, Several, joined, started
from codegemm.hf.blockwise.kept import Kept
from codegemm.hf.blockwise.learnt import Learnt, learn
from codegemm.hf.blockwise.matrix import Layer
from codegemm.hf.blockwise.result import QuantizedModel, bytes_taken, planned
from codegemm.hf.blockwise.run import Run, Settings
from codegemm.hf.blockwise.skeleton import Skeleton, check_logits
from codegemm.hf.blockwise.streams import Streams, Way
from codegemm.hf.blockwise.surroundings import one_at_a_time, quiet
from codegemm.hf.blockwise.text import StrPath, Text, check_length, files_of, text_of
from codegemm.hf.config import CodegemmConfig
from codegemm.hf.distillation.train import Lessons
from codegemm.hf.generation import device_named
from codegemm.hf.matrices import Plan, plan
from codegemm.measuring import memory
from codegemm.quantize.parts import Parts
from codegemm.quantize.progress import Progress, opener
from codegemm.version import __version__

LENGTH, TOKENS = 512, 1 << 15
_ADDED = (report.FILE, model_card.CARD)


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
        original's predictions (codes stay), in rows of `length`; or Lessons. That is done by one process.
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
    configs = configurations_of(config, bits, calibration)
    asked = CodegemmConfig(configs[0], layers, modules_to_not_convert, seed=seed, time_limit=time_limit)
    asked.check_quantizable()
    folder, where = Path(source), device_named(device).type
    skeleton = Skeleton.open(folder)
    names = experts.names_of(skeleton.model)
    budget = None if bits is None else Budget.of(checked_bits(bits), configs, skeleton.model, asked, names)
    made = plan(skeleton.model, asked, names) if budget is None else budget.made
    text = None if calibration is None else text_of(skeleton, folder, calibration, tokens, length)
    place = destination(skeleton.source, Path(target), files_of(calibration), force, _ADDED)
    settings = Settings(asked.seed, time_limit, where, count("tune", tune, 0))
    if text is not None and not spill:
        memory.ensure("the calibration's hidden states (--spill keeps them on disk)", bytes_taken(skeleton, text)[0])
    taught = distill if isinstance(distill, Lessons) else Lessons(distill, length) if distill else None
    if taught is not None or tune:
        taught = _checked_training(skeleton, made, text, taught)
    arguments = _Arguments(folder, place.path, asked, settings, text, spill, keep, force, taught)
    several = workers_for(workers, where)
    with ExitStack() as stack:
        group = stack.enter_context(joined())
        open_bar = opener(progress if group.leads else False)
        if budget is not None:
            allocation = _allocation(arguments, skeleton, budget, group, open_bar, keep=not dry_run)
            arguments = replace(arguments, config=allocation.applied(), allocation=allocation)
            made = plan(skeleton.model, arguments.config, names)
        if dry_run:
            return planned(skeleton, made, place, text)
        if isinstance(group, Alone) and several > 1:
            group = stack.enter_context(started(several, _follow, (arguments,)))
        kept = Kept(Parts(place.path))
        with open_bar("quantizing") as bar:
            run = _through(arguments, skeleton, made, group, kept, bar, on_layer)
        places = {name: place for place, name in enumerate(made.matrices)}
        done = sorted(run.layers, key=lambda layer: places[layer.name])
        if group.leads:
            learnt = None
            if arguments.lessons is not None:
                assert text is not None
                with open_bar("distilling") as bar:
                    learnt = learn(skeleton, kept, text, arguments.lessons, where, run.key, bar)
            _write(arguments, skeleton, made, kept, done, learnt)
        group.share(None, 0)  # no process ends before the folder is there
    return QuantizedModel(
        place.path, tuple(done), tuple(made.dense), skeleton.source.nbytes,
        sum(path.stat().st_size for path in place.paths) if group.leads else 0,
        0 if text is None else text.ids.numel(), kept.resumed, place.left_out, *bytes_taken(skeleton, text),
    )  # fmt: skip


@dataclass(frozen=True)
class _Arguments:
    """What each process is told."""

    folder: Path
    target: Path
    config: CodegemmConfig
    settings: Settings
    text: Text | None
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
        with open_bar("measuring layers") as bar, quiet():
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
        stack.enter_context(quiet())
        if settings.device == "cpu":
            stack.enter_context(one_at_a_time())
        run.through(None if text is None else partial(_begun, arguments, skeleton, group, text), begin)
    return run


def _begun(arguments: _Arguments, skeleton: Skeleton, group: Group, text: Text) -> tuple[Streams, Way]:
    """The text in front of the first block."""
    folder = arguments.target.parent if arguments.spill else None
    return Streams.begin(skeleton, text.ids, group, folder)


def _write(
    arguments: _Arguments, skeleton: Skeleton, made: Plan, kept: Kept, done: Sequence[Layer], taught: Learnt | None
) -> None:
    """The folder, with a report of the layers and a card; then what was kept is not needed any more."""
    # It may be there by now.
    place = destination(skeleton.source, arguments.target, [], arguments.force, _ADDED)
    text = arguments.text
    tokens, texts = (0, []) if text is None else (text.ids.numel(), text.names)
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


def _checked_training(skeleton: Skeleton, made: Plan, text: Text | None, lessons: Lessons | None) -> Lessons | None:
    """The lessons that fit the text; ValueError where weights can't be trained so: of such formats, of such a model, on
    such a text."""
    if text is None:
        raise ValueError(f"{'tune' if lessons is None else 'distill'}: there is no calibration to learn from")
    check_trainable((matrix.name, matrix.config) for matrix in made.matrices.values())
    if lessons is None:
        return None
    check_logits("distill", skeleton.model)
    fitted = text.fitted(lessons)
    check_length(skeleton, fitted.length)
    return fitted
