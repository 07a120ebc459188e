"""The way through a model: block by block, and in a block stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from codegemm import cache
from codegemm.formats.weight import Weight
from codegemm.hf import experts
from codegemm.hf.blockwise import residual, stages
from codegemm.hf.blockwise.group import Group
from codegemm.hf.blockwise.kept import Kept
from codegemm.hf.blockwise.matrix import Layer, Work
from codegemm.hf.blockwise.moments import Moments
from codegemm.hf.blockwise.skeleton import Skeleton
from codegemm.hf.blockwise.stages import Stage
from codegemm.hf.blockwise.streams import Streams, Way
from codegemm.hf.blockwise.tuning import tune
from codegemm.hf.matrices import Matrix, Plan
from codegemm.quantize.stored import digest
from codegemm.quantize.stored import made as identity

_TOGETHER = 8  # matrices that are in work on a GPU at a time: as many experts fill it as layers of a usual block


@dataclass(frozen=True)
class Settings:
    """What, beside the model, its plan and the text, decides what becomes of it."""

    seed: int = 0
    time_limit: float | None = None
    device: str = "cpu"
    tune: int = 0  # steps for each block

    @property
    def backend(self) -> Any:
        """Of the quantiser; on a CPU that which the size of a matrix suggests."""
        return "cuda" if self.device == "cuda" else None


@dataclass
class Run:
    """Quantises a model's matrices. told: hears of each layer, in their order, in every process."""

    skeleton: Skeleton
    plan: Plan
    names: experts.Names
    settings: Settings
    group: Group
    kept: Kept
    told: Callable[[Layer], None]
    layers: list[Layer] = field(default_factory=list)
    key: str = ""  # of all that was done so far

    @property
    def device(self) -> torch.device:
        """Of this process: of several GPUs each has one."""
        if self.settings.device != "cuda":
            return torch.device(self.settings.device)
        return torch.device("cuda", self.group.rank % torch.cuda.device_count())

    def through(self, text: Callable[[], tuple[Streams, Way]] | None, begin: str) -> list[Layer]:
        """All matrices: those of the blocks, then those outside them, without inputs. The same in every process.

        text: gives what the first block gets of it; it is not asked where nothing is left to do for the blocks.
        begin: a key of the text and of all else that the first block gets.
        """
        self.key = cache.key(begin, self.skeleton.described, *self._digests(lambda name: not self._is_inside(name)))
        keys = []
        for number in range(self.skeleton.count):
            self.key = self._key(self.key, number)
            keys.append(self.key)
        if not self._are_kept(keys):
            streams, way = (None, None) if text is None else text()
            for number, key in enumerate(keys):
                with self.skeleton.block(number) as block:
                    self._block(number, block, streams, way, key)
        rest = {name: matrix for name, matrix in self.plan.matrices.items() if not self._is_inside(name)}
        if rest:
            self.key = cache.key(self.key, *(f"{name} {identity(each.config)}" for name, each in rest.items()))
            with self.skeleton.around() as model:
                dense = stages.with_layers(model, self.names, model.config)
                self._stage(Stage((tuple(rest),)), rest, dense, None, self.key)
        return self.layers

    def _are_kept(self, keys: Sequence[str]) -> bool:
        """Take what is kept of all blocks, where nothing is lacking."""
        layers = None
        if self.group.leads:
            last = [self._tuned(key) if self.settings.tune else key for key in keys]
            wanted = [(key, [each.name for each in self._here(number).values()]) for number, key in enumerate(last)]
            if all(self.kept.has(key, names) for key, names in wanted):
                layers = [layer for key, names in wanted for _, layer in self.kept.find_all(key, names) or ()]
        layers = self.group.share(layers, 0)
        for layer in layers or ():
            self.layers.append(layer)
            self.told(layer)
        return layers is not None

    def _here(self, number: int) -> dict[str, Matrix]:
        """A block's matrices, by their names in it."""
        begin = f"{self.skeleton.name(number)}."
        return {name.removeprefix(begin): each for name, each in self.plan.matrices.items() if name.startswith(begin)}

    def _tuned(self, key: str) -> str:
        """Of a block's weights when they are trained."""
        return cache.key(key, "tuned", str(self.settings.tune))

    def _block(self, number: int, block: Any, streams: Streams | None, way: Way | None, key: str) -> None:
        config, device, here = self.skeleton.model.config, self.device, self._here(number)
        dense, made = (stages.with_layers(block, self.names, config).to(device) for _ in range(2))
        if streams is None or way is None:
            self._stage(Stage((tuple(here),)), here, made, None, key)
            return
        order, beside = self._order(number, dense, here, streams, way) if here else ([], {})
        both = dense, made
        for stage in order:
            inputs = partial(self._moments, number, stage, here, beside, both, streams, way)
            self._stage(stage, here, made, inputs, key)
        if self.settings.tune and here:
            self._tune(number, here, both, streams, way, self._tuned(key))
        streams.advance(way, number, dense, made, device)

    def _order(
        self, number: int, dense: Any, here: Mapping[str, Matrix], streams: Streams, way: Way
    ) -> tuple[list[Stage], dict[str, str]]:
        """A block's stages, and the streams that matrices write to. The process that has the beginning of the text
        looks: of a short one the first may have nothing."""
        found = None
        shard, first = next((number, parts[0]) for number, parts in enumerate(streams.parts) if parts)
        owner = self.group.owner(shard)
        if self.group.rank == owner:
            given = way.given(number, streams.original[first].to(self.device))
            alone = [name for name, matrix in here.items() if matrix.expert is None]
            found = stages.stages(dense, here, *given), residual.streams(dense, alone, *given)
        order: tuple[list[Stage], dict[str, str]] = self.group.share(found, owner)
        return order

    def _moments(
        self,
        number: int,
        stage: Stage,
        here: Mapping[str, Matrix],
        beside: Mapping[str, str],
        blocks: tuple[Any, Any],
        streams: Streams,
        way: Way,
    ) -> dict[str, Moments]:
        """Of the inputs of a stage's matrices. beside: of matrices the modules whose inputs their products are added
        to. blocks: the original one and the quantised one."""
        firsts = [group[0] for group in stage.groups]
        alone = [name for name in firsts if here[name].expert is None]
        of_both = [*alone, *(beside[name] for name in alone if name in beside)]
        widths = {name: here[name].shape[0] if name in beside else 0 for name in firsts}
        totals: dict[str, Moments] = {}
        for shard, parts in enumerate(streams.parts):
            if not parts:
                continue
            sums = None
            if shard in streams.own:
                sums = {name: Moments.empty(here[name].shape[1], widths[name], self.device) for name in firsts}
                for part in parts:
                    original = self._heard(number, blocks[0], streams.original[part], of_both, way) if of_both else {}
                    quantised = self._heard(number, blocks[1], streams.quantised[part], [*firsts, *of_both], way)
                    for name in firsts:
                        _add(sums[name], name, beside.get(name), here[name], original, quantised)
                sums = {name: each.in_memory() for name, each in sums.items()}
            sums = self.group.share(sums, self.group.owner(shard))
            totals = {name: totals[name].plus(sums[name]) if totals else sums[name] for name in firsts}
        for name, total in totals.items():
            if not total.is_finite:
                raise ValueError(f"{self.skeleton.name(number)}.{name}: its inputs have a NaN or an infinity")
        return {name: totals[group[0]] for group in stage.groups for name in group}

    def _heard(
        self, number: int, block: Any, states: torch.Tensor, names: Sequence[str], way: Way
    ) -> dict[str, torch.Tensor]:
        """The inputs [rows, width] of modules of a block, and its own."""
        hidden = states.to(self.device)
        heard = {residual.BLOCK: hidden.reshape(-1, hidden.shape[-1])}
        wanted = [name for name in names if name != residual.BLOCK]
        stages.run_until(block, wanted, heard.__setitem__, *way.given(number, hidden))
        return heard

    def _stage(
        self,
        stage: Stage,
        here: Mapping[str, Matrix],
        made: Any,
        inputs: Callable[[], Mapping[str, Moments]] | None,
        key: str,
    ) -> None:
        """Quantise a stage's matrices, the largest first, in turn by the processes; put them into the block."""
        names = sorted(stage.names, key=lambda name: -here[name].shape[0] * here[name].shape[1])
        kept = [self.kept.find(key, here[name].name) for name in names] if self.group.leads else None
        found = dict(zip(names, self.group.share(kept, 0)))
        new = [name for name in names if found[name] is None]
        moments = inputs() if new and inputs is not None else {}
        turns = {name: self.group.owner(number) for number, name in enumerate(new)}
        own = [name for name in new if turns[name] == self.group.rank]

        def quantised(name: str) -> Any:
            return self._quantised(here[name], made.get_submodule(name), moments.get(name), key)

        found.update(zip(own, together(quantised, own, self.device)))
        for name in names:
            if name in turns:
                found[name] = self.group.share(found[name], turns[name])
            if isinstance(found[name], ValueError):
                raise found[name]
            weight, layer = found[name]
            if name in turns and turns[name] != self.group.rank and self.group.leads:
                self.kept.keep(key, weight, layer)
            _put(made.get_submodule(name), weight)
            self.layers.append(layer)
            self.told(layer)

    def _tune(
        self,
        number: int,
        here: Mapping[str, Matrix],
        blocks: tuple[Any, Any],
        streams: Streams,
        way: Way,
        key: str,
    ) -> None:
        """Train the weights of a block's layers to give the original's outputs; the block multiplies by those then."""
        said = {layer.name: layer for layer in self.layers[-len(here) :]}
        names = [matrix.name for matrix in here.values()]
        kept = self.group.share(self.kept.find_all(key, names) if self.group.leads else None, 0)
        found = dict(zip(here, kept or ()))
        if kept is None:
            before = self.group.share(self.kept.weights(said) if self.group.leads else None, 0)
            own = {name: before[matrix.name] for name, matrix in here.items()}
            made = stages.with_layers(blocks[1], self.names, self.skeleton.model.config)
            tuned = tune(number, blocks[0], made, own, streams, way, self.settings.tune, self.group)
            found = {name: (weight, said[here[name].name]) for name, weight in tuned.weights.items()}
            for name in here if self.group.leads else ():
                self.kept.keep(key, *found[name])
        for name, (weight, _) in found.items():
            _put(blocks[1].get_submodule(name), weight)

    def _quantised(self, matrix: Matrix, layer: Any, moments: Moments | None, key: str) -> Any:
        """The weight and what is said of it, kept if this process writes; or the error, of which all are to know."""
        settings = self.settings
        work = Work(
            matrix.name, layer.weight.detach().float().cpu().numpy(), matrix.config, moments, matrix.expert is None,
            settings.seed, settings.time_limit, settings.backend,
        )  # fmt: skip
        try:
            done = work.done()
        except ValueError as error:
            return error
        if self.group.leads:
            self.kept.keep(key, *done)
        return done

    def _key(self, before: str, number: int) -> str:
        """Of all that a block's weights depend on: what is before it, its own tensors and how they are quantised."""
        begin = f"{self.skeleton.name(number)}."
        digests = self._digests(lambda name: name.startswith(begin))
        here = [f"{each.name} {identity(each.config)}" for each in self._here(number).values()]
        return cache.key(before, *digests, *here)

    def _digests(self, wanted: Callable[[str], bool]) -> list[str]:
        """Of what the files have of parameters with such names."""
        own = [key for name, keys in self.skeleton.keys.items() if wanted(name) for key in keys]
        return [digest(self.skeleton.source.tensors[key].data) for key in own]

    def _is_inside(self, name: str) -> bool:
        return name.startswith(f"{self.skeleton.blocks}.")


def _add(
    sums: Moments,
    name: str,
    stream: str | None,
    matrix: Matrix,
    original: Mapping[str, torch.Tensor],
    quantised: Mapping[str, torch.Tensor],
) -> None:
    """What a matrix had as inputs of a part of the text, where it had any."""
    x = quantised.get(name)
    if x is None:
        return
    if matrix.expert is not None:  # the two models send other rows there
        sums.add(x, x)
    else:
        sums.add(x, original[name], None if stream is None else original[stream] - quantised[stream])


def together(work: Callable[[str], Any], names: Sequence[str], device: torch.device) -> list[Any]:
    """What work makes of each name. On a GPU some are in work at a time: while processors are at one matrix, it is at
    another's. On a CPU one after the other, each by all of its cores."""
    if device.type != "cuda":
        return [work(name) for name in names]
    with ThreadPoolExecutor(_TOGETHER, initializer=torch.cuda.set_device, initargs=(device,)) as pool:
        return list(pool.map(work, names))


def _put(layer: torch.nn.Linear, weight: Weight) -> None:
    """Have a layer multiply by the quantised matrix, dense."""
    dense = torch.from_numpy(weight.dequantize(np.float32)).to(layer.weight.device)
    layer.weight = torch.nn.Parameter(dense, requires_grad=False)
