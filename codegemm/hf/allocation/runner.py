"""Which configuration each layer of a model gets, for so many bits over all of them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from numbers import Real
from typing import Any

import torch

from codegemm import cache
from codegemm.hf.allocation import candidates, knapsack, noise, sensitivity
from codegemm.hf.allocation.candidates import Pool
from codegemm.hf.allocation.sensitivity import Probe
from codegemm.hf.blockwise.skeleton import Skeleton, check_logits
from codegemm.hf.config import CodegemmConfig
from codegemm.hf.experts import Names
from codegemm.hf.matrices import Plan, plan
from codegemm.measuring import memory
from codegemm.quantize.parts import Parts
from codegemm.quantize.progress import Progress
from codegemm.quantize.stored import digest
from codegemm.version import __version__


@dataclass(frozen=True)
class Measured:
    """Of each matrix, or the pattern of those of all experts of a layer, how far errors in it take the model's
    predictions from what they were: the mean of KL(model || model with them) in nats a token.

    error: of these errors, |W - W'|^2 / |W|^2 as it is before a calibration gives them their shape. tokens: that
    predictions were compared on.
    """

    divergences: Mapping[str, float]
    error: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Allocation:
    """What was measured, and what follows. bits: that were asked for. asked: what the user said of layers. errors: of
    configurations, as `Measured.error`, of normal numbers. config: what most weights have. layers: by the names of all
    matrices that it was chosen for. dense: modules that stay so, by their names."""

    bits: float
    asked: CodegemmConfig
    errors: Mapping[str, float]
    measured: Measured
    config: str
    layers: Mapping[str, str]
    dense: Sequence[str]

    def applied(self) -> CodegemmConfig:
        """The configuration of the model."""
        asked = self.asked
        dense = list(dict.fromkeys([*(asked.modules_to_not_convert or ()), *self.dense]))
        layers = {**asked.layers, **self.layers}
        return CodegemmConfig(self.config, layers, dense, seed=asked.seed, time_limit=asked.time_limit)

    def told(self) -> dict[str, Any]:
        """For the report, in plain values."""
        return {"bits": self.bits, "errors": dict(self.errors), **asdict(self.measured)}


@dataclass(frozen=True)
class Budget:
    """bits: a weight, over all matrices, codebooks and scales counted. pools: what can be chosen."""

    bits: float
    configs: Sequence[str]
    made: Plan
    asked: CodegemmConfig
    pools: Mapping[str, Pool]

    @classmethod
    def of(cls, bits: float, configs: Sequence[str], model: Any, asked: CodegemmConfig, names: Names) -> Budget:
        """For a model, on whatever device. asked: what the user said of layers; its own configuration is not looked at.

        ValueError where the budget can't be met, where the model gives no logits, and as of `matrices.plan`.
        """
        check_logits("bits", model)
        made = _planned(configs, model, asked, names)
        found = cls(bits, configs, made, asked, candidates.pools(made, asked, configs))
        knapsack.check({name: pool.item(0.0, dict.fromkeys(configs, 0.0)) for name, pool in found.pools.items()}, bits)
        return found

    @property
    def free(self) -> dict[str, Pool]:
        """Those that there is a choice for."""
        return {name: pool for name, pool in self.pools.items() if pool.options is not None}

    def spent(self, measured: Measured) -> Allocation:
        """What each matrix gets."""
        errors = {config: candidates.error(config) for config in self.configs}
        lost = {name: value / measured.error for name, value in measured.divergences.items()}
        items = {name: pool.item(lost.get(name, 0.0), errors) for name, pool in self.pools.items()}
        chosen = knapsack.choose(items, self.bits)
        layers, weights = {}, Counter[str]()
        for name, pool in self.free.items():
            assert pool.options is not None
            for matrix, config in zip(pool.matrices, pool.options[chosen[name]], strict=True):
                layers[matrix.name] = config
                weights[chosen[name]] += prod(matrix.shape)
        most = weights.most_common(1)[0][0] if weights else self.asked.config
        return Allocation(self.bits, self.asked, errors, measured, most, layers, self.made.dense)


def checked_bits(bits: Any) -> float:
    """TypeError or ValueError for what can't be a number of bits a weight."""
    if not isinstance(bits, Real) or isinstance(bits, bool):
        raise TypeError(f"bits={bits!r}: must be None or a number of bits a weight")
    if not 0 < float(bits) < float("inf"):
        raise ValueError(f"bits={bits!r}: must be above 0 and finite")
    return float(bits)


def measure(
    skeleton: Skeleton, budget: Budget, ids: torch.Tensor, parts: Parts, device: str, bar: Progress, keep: bool = True
) -> Measured:
    """What errors in each matrix do to the predictions for rows of a calibration [rows, tokens].

    parts: where an earlier run may have kept it, and where it is kept for a later one unless `keep` is False.
    MemoryError where hidden states have no room.
    """
    pools = budget.free
    widest = max((matrix.shape[1] for pool in pools.values() for matrix in pool.matrices), default=0)
    probe, seed = Probe.of(ids, widest), budget.asked.seed
    key = _key(skeleton, pools, probe, seed)
    kept = _read(parts, key)
    if kept is not None:
        return kept
    begin = time.monotonic()
    width = skeleton.model.config.get_text_config().hidden_size
    memory.ensure("hidden states with errors of each matrix", sensitivity.bytes_needed(probe, len(pools), width))
    found = sensitivity.divergences(skeleton, pools, probe, torch.device(device), seed, bar)
    measured = Measured(found, noise.ERROR, probe.compared.numel(), time.monotonic() - begin)
    if keep:
        parts.keep_state(key, json.dumps(asdict(measured)).encode())
    return measured


def _planned(configs: Sequence[str], model: Any, asked: CodegemmConfig, names: Names) -> Plan:
    """By the first of the configurations that all matrices can hold; what the first one says where there is none."""
    refused = None
    for config in configs:
        try:
            return plan(model, CodegemmConfig(config, asked.layers, asked.modules_to_not_convert), names)
        except ValueError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _key(skeleton: Skeleton, pools: Mapping[str, Pool], probe: Probe, seed: int) -> str:
    """Of all that the measurement depends on."""
    tensors = (f"{name} {digest(each.data)}" for name, each in sorted(skeleton.source.tensors.items()))
    text = cache.key(str((*probe.ids.shape, probe.together)), probe.ids.numpy().tobytes())
    return cache.key(__version__, str(skeleton.model.config), *tensors, text, str(seed), str(noise.ERROR), *pools)


def _read(parts: Parts, key: str) -> Measured | None:
    try:
        return Measured(**json.loads(parts.state(key).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
