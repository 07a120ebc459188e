"""How much a model's predictions suffer from errors in one matrix, the others as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import torch

from codegemm.hf import experts
from codegemm.hf.allocation import noise
from codegemm.hf.allocation.candidates import Pool
from codegemm.hf.blockwise import stages
from codegemm.hf.blockwise.moments import are_enough
from codegemm.hf.blockwise.skeleton import Skeleton
from codegemm.hf.blockwise.streams import Way, first_inputs, logits, way_of
from codegemm.quantize.progress import Progress

LENGTH, TOGETHER = 256, 2  # tokens of a row; rows that predictions are compared on
_ROWS = 64  # of logits at a time
_TOKENS = 4096  # beside those, that the matrices' inputs are known by, at least
_FOR_EACH = 2  # input, such tokens


@dataclass(frozen=True)
class Probe:
    """ids [rows, length]: the first `together` rows are those that predictions are compared on, and so many go through
    a block at a time."""

    ids: torch.Tensor
    together: int

    @classmethod
    def of(cls, ids: torch.Tensor, widest: int) -> Probe:
        """Rows of a calibration [rows, tokens], from all over it. widest: inputs of a matrix at most."""
        rows, length = ids[:, :LENGTH], min(ids.shape[1], LENGTH)
        together = min(TOGETHER, len(rows))
        wanted = together * length + max(_TOKENS, _FOR_EACH * widest)
        count = min(len(rows), -(-wanted // length)) // together * together
        spread = rows[torch.arange(count) * len(rows) // count]
        first = torch.arange(together) * count // together  # not neighbours: of several texts where there are some
        others = torch.tensor([number for number in range(count) if number not in first.tolist()], dtype=torch.long)
        return cls(spread[torch.cat([first, others])], together)

    @property
    def compared(self) -> torch.Tensor:
        """The rows that predictions are compared on."""
        return self.ids[: self.together]

    @property
    def parts(self) -> list[slice]:
        """All rows, so many at a time."""
        return [slice(first, first + self.together) for first in range(0, len(self.ids), self.together)]

    @property
    def inputs(self) -> list[slice]:
        """Those that inputs are known by: the others, where there are any."""
        return self.parts[1:] or self.parts


def bytes_needed(probe: Probe, pools: int, width: int) -> int:
    """Of all hidden states, in float32."""
    return 4 * width * (probe.ids.numel() + pools * probe.compared.numel())


def divergences(
    skeleton: Skeleton, pools: Mapping[str, Pool], probe: Probe, device: torch.device, seed: int, bar: Progress
) -> dict[str, float]:
    """By pool the mean of KL(model || model with errors in these matrices) in nats a token, for errors `noise.errors`,
    of `noise.ERROR` relative to the matrices.

    One block at a time is in memory, and what each pool's errors have made of the hidden states so far. A matrix of a
    block has errors of the shape that a calibration gives; one outside the blocks, or an expert that too few tokens
    reach, errors without. ValueError for a matrix whose inputs or errors give no numbers.
    """
    inside = {name: pool for name, pool in pools.items() if pool.matrices[0].name.startswith(f"{skeleton.blocks}.")}
    outside = {name: pool for name, pool in pools.items() if name not in inside}
    first_block = {name: _block_of(skeleton, pool) for name, pool in inside.items()}
    bar.total(
        skeleton.count * (len(probe.parts) + len(outside))
        + sum(skeleton.count - number for number in first_block.values())
        + len(pools)
    )
    with skeleton.around() as model, _on(device, model):
        states = torch.cat([first_inputs(skeleton, model, probe.ids[part].to(device)).cpu() for part in probe.parts])
        compared = probe.compared.to(device)
        way = way_of(skeleton, model, compared, compared)
        changed = {
            name: first_inputs(skeleton, there, probe.compared.to(device)).cpu()
            for name, there in _each_changed(skeleton, model, outside, seed)
        }
    names = experts.names_of(skeleton.model)
    for number in range(skeleton.count):
        here = {name: pool for name, pool in inside.items() if first_block[name] == number}
        with skeleton.block(number) as block:
            dense = stages.with_layers(block, names, skeleton.model.config).to(device)
            call = partial(_call, way, number, dense, device)
            for name, own in changed.items():
                changed[name] = call(own)
                bar.advance()
            for name, layers in _layers_changed(skeleton, number, dense, here, states, probe, way, device, seed):
                with _put(dense, layers):
                    bar.name(name)
                    changed[name] = call(states[: probe.together])
                    bar.advance()
            for part in probe.parts:
                states[part] = call(states[part])
                bar.advance()
    with skeleton.around() as model, _on(device, model):
        ids = probe.compared.to(device)

        def said(model: Any, hidden: torch.Tensor) -> torch.Tensor:
            return logits(skeleton, model, way, ids, hidden.to(device)).flatten(0, -2).float()

        base, found = said(model, states[: probe.together]).log_softmax(-1), {}
        for name, there in _each_changed(skeleton, model, outside, seed):
            found[name] = _divergence(name, said(there, changed[name]), base)
            bar.advance()
        for name in inside:
            found[name] = _divergence(name, said(model, changed[name]), base)
            bar.advance()
    return {name: found[name] for name in pools}


def _block_of(skeleton: Skeleton, pool: Pool) -> int:
    return int(pool.matrices[0].name.removeprefix(f"{skeleton.blocks}.").partition(".")[0])


def _call(way: Way, number: int, block: Any, device: torch.device, hidden: torch.Tensor) -> torch.Tensor:
    return way.call(number, block, hidden.to(device)).cpu()


def _layers_changed(
    skeleton: Skeleton,
    number: int,
    block: Any,
    pools: Mapping[str, Pool],
    states: torch.Tensor,
    probe: Probe,
    way: Way,
    device: torch.device,
    seed: int,
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Of each pool of a block the matrices with their errors, by their names in the block."""
    begin = f"{skeleton.name(number)}."
    here = {matrix.name.removeprefix(begin): matrix for pool in pools.values() for matrix in pool.matrices}
    if not here:
        return
    given = partial(way.given, number)
    owner = {matrix.name.removeprefix(begin): name for name, pool in pools.items() for matrix in pool.matrices}
    for stage in stages.stages(block, here, *given(states[: probe.together].to(device))):
        firsts = [group[0] for group in stage.groups]
        sums: dict[str, tuple[torch.Tensor, int]] = {}

        def hear(name: str, x: torch.Tensor, sums: dict[str, tuple[torch.Tensor, int]] = sums) -> None:
            if len(x):
                own, rows = noise.gram(x), len(x)
                sums[name] = (sums[name][0] + own, sums[name][1] + rows) if name in sums else (own, rows)

        for part in probe.inputs:
            stages.run_until(block, firsts, hear, *given(states[part].to(device)))
        made: dict[str, dict[str, torch.Tensor]] = {}
        for group in stage.groups:
            upper = _upper(f"{begin}{group[0]}", here[group[0]].shape[1], *sums.pop(group[0], (None, 0)))
            for name in group:
                weight = block.get_submodule(name).weight
                made.setdefault(owner[name], {})[name] = weight + noise.errors(weight, upper, seed, begin + name)
        yield from made.items()


def _upper(name: str, columns: int, total: torch.Tensor | None, rows: int) -> torch.Tensor | None:
    """What shapes the errors; None where too little is known of the inputs."""
    if total is None or not are_enough(rows, columns) or not bool(total.any()):
        return None
    if not bool(torch.isfinite(total).all()):
        raise ValueError(f"{name}: its inputs have a NaN or an infinity")
    return noise.triangle(total)


def _each_changed(skeleton: Skeleton, model: Any, pools: Mapping[str, Pool], seed: int) -> Iterator[tuple[str, Any]]:
    """Of each pool outside the blocks the model with errors in its matrices; without a shape, for no inputs of theirs
    are known when they are quantised."""
    if not pools:
        return
    there = stages.with_layers(model, experts.names_of(skeleton.model), skeleton.model.config)
    for name, pool in pools.items():
        weights = {matrix.name: there.get_submodule(matrix.name).weight for matrix in pool.matrices}
        with _put(there, {key: each + noise.errors(each, None, seed, key) for key, each in weights.items()}):
            yield name, there


@contextmanager
def _put(model: Any, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Other matrices in a model's linear layers, for a while."""
    layers = {name: model.get_submodule(name) for name in weights}
    before = {name: layer.weight for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.weight = torch.nn.Parameter(weights[name], requires_grad=False)
        yield
    finally:
        for name, layer in layers.items():
            layer.weight = before[name]


@contextmanager
def _on(device: torch.device, model: Any) -> Iterator[None]:
    """What of a model has numbers, on a device, for a while."""
    held: Sequence[torch.Tensor] = [each for each in (*model.parameters(), *model.buffers()) if not each.is_meta]
    before = [each.device for each in held]
    try:
        for each in held:
            each.data = each.data.to(device)
        yield
    finally:
        for each, place in zip(held, before):
            each.data = each.data.to(place)


def _divergence(name: str, said: torch.Tensor, base: torch.Tensor) -> float:
    """The mean over tokens of KL, of logits [tokens, words] and the model's own log likelihoods; in parts, for a
    vocabulary may be large."""
    total = 0.0
    for own, right in zip(said.split(_ROWS), base.split(_ROWS)):
        total += float((right.exp() * (right - own.log_softmax(-1))).sum(dtype=torch.float64))
    if not isfinite(total):
        raise ValueError(f"{name}: with errors in it the model's predictions are no numbers")
    return max(total / len(base), 0.0)
