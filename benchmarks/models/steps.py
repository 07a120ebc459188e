"""What the benchmark asks of the package for a case: a quantised model, and what it makes of texts."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.models.cases import CALIBRATED, DISTILLED, INTEGERS, NEAREST, PLAIN, Case
from benchmarks.models.integers import Integers
from benchmarks.models.texts import CALIBRATION, HELD_OUT

SEQUENCE = 512  # tokens
HELD_OUT_TEXTS = ("technical", "jargon", "other")


@dataclass(frozen=True)
class Settings:
    """model: the dense one's folder. texts: what `benchmarks.models.texts` assembled. work: where quantised models are
    left. Of the mix, calibrated: tokens by which codebooks and integers are fitted; distilled: tokens whose predictions
    are learned. evaluated: tokens of each held-out text that count, None: all. device: `auto`, `cpu` or `cuda`."""

    model: Path
    texts: Path
    work: Path
    calibrated: int
    distilled: int
    evaluated: int | None
    device: str

    def mix(self) -> list[Path]:
        """The texts to calibrate by; FileNotFoundError where there are none."""
        return self._files(CALIBRATION, ("*",))

    def held_out(self) -> list[Path]:
        """Those to evaluate on; FileNotFoundError for one that is not there."""
        return self._files(HELD_OUT, HELD_OUT_TEXTS)

    def _files(self, side: str, names: Sequence[str]) -> list[Path]:
        found = []
        for name in names:
            files = sorted((self.texts / side).glob(f"{name}.txt"))
            if not files:
                where = self.texts / side / f"{name}.txt"
                raise FileNotFoundError(f"{where}: no such file: python -m benchmarks.models.texts {self.texts}")
            found += files
        return found


@dataclass(frozen=True)
class Made:
    """A model of transformers in evaluation mode, the bits of a weight of its quantised layers in the mean, scales and
    codebooks included, and the seconds that it took: all of the last run, or, of codebooks, in whichever runs:
    matrices, summed over processes that work side by side, and distilling."""

    model: Any
    bits: float
    seconds: dict[str, float]


def made(case: Case, settings: Settings) -> Made:
    """The case's model."""
    return (_rounded if case.way in INTEGERS else _quantised)(case, settings)


def _quantised(case: Case, settings: Settings) -> Made:
    """By codegemm itself, into a folder that is gone on with where it was begun, and taken where it is whole. What is
    distilled goes on from the calibrated model's matrices, where these are kept."""
    from codegemm.formats.format import spec_of
    from codegemm.hf import generation, quantize_model
    from codegemm.torch.replace import quantized_layers

    target, (configs, bits) = settings.work / case.name, case.asked
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        kept, own = (settings.work / f".{Case(case.config, way).name}.parts" for way in (CALIBRATED, case.way))
        if case.way == DISTILLED and kept.is_dir() and not own.exists():
            shutil.copytree(kept, own)
        quantize_model(
            settings.model,
            target,
            configs[0] if bits is None else configs,
            bits=bits,
            calibration=None if case.way == PLAIN else settings.mix(),
            tokens=settings.calibrated,
            length=SEQUENCE,
            distill=settings.distilled if case.way == DISTILLED else 0,
            device=settings.device,
            keep=case.way == CALIBRATED,
        )
    model = generation.open_model(target, generation.device_named(settings.device))
    layers = quantized_layers(model).values()
    specs = [spec_of((layer.out_features, layer.in_features), layer.config) for layer in layers]
    weights = sum(spec.out_features * spec.in_features for spec in specs)
    return Made(model, sum(spec.packed_bits for spec in specs) / weights, _seconds(target))


def _seconds(target: Path) -> dict[str, float]:
    """By the report that is in the folder."""
    from codegemm.hf.blockwise import report

    said = json.loads((target / report.FILE).read_text())
    spent = {"matrices": sum(layer["seconds"] for layer in said["layers"])}
    return spent | ({"distilling": said["distillation"]["seconds"]} if "distillation" in said else {})


def _rounded(case: Case, settings: Settings) -> Made:
    """As integers, in memory; fitted by the same rows of text as codebooks are."""
    from benchmarks.models import rounding
    from codegemm.hf import generation
    from codegemm.hf.blockwise import rows
    from codegemm.hf.blockwise.skeleton import Skeleton

    begin, integers, skeleton = time.perf_counter(), Integers.parse(case.config), Skeleton.open(settings.model)
    model = generation.open_model(settings.model, generation.device_named(settings.device), "float32")
    if case.way == NEAREST:
        bits = rounding.round_nearest(model, skeleton, integers)
        return Made(model, bits, {"rounding": time.perf_counter() - begin})
    tokenizer = generation.open_tokenizer(settings.model)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = rows.encoded(tokenizer, settings.mix(), vocabulary, str(settings.model))
    spread = rows.spread(ids, SEQUENCE, settings.calibrated)
    bits = rounding.round_fed_back(model, skeleton, integers, spread, _tell)
    return Made(model, bits, {"rounding": time.perf_counter() - begin})


def _tell(done: int, blocks: int) -> None:
    print(f"  block {done} of {blocks}", file=sys.stderr, flush=True)


def evaluated(model: Any, settings: Settings) -> dict[str, dict[str, Any]]:
    """By the name of each held-out text: perplexity, base_perplexity and ratio, theirs; kl, of the dense model to this
    one in nats a token; top1, the share of tokens for which both have the same likeliest one; intervals of 95 % of the
    last three; predictions, their number; sha256, of the text's file."""
    from codegemm.hf import evaluate, generation

    found = evaluate(
        model,
        settings.held_out(),
        base=settings.model,
        tokenizer=generation.open_tokenizer(settings.model),
        tokens=settings.evaluated,
    )
    return {Path(each.source.name).stem: _plain(each) for each in found.texts}


def _plain(found: Any) -> dict[str, Any]:
    told: Mapping[str, Any] = {"ratio": found.ratio, "kl": found.kl, "top1": found.agreement}
    return {
        "perplexity": found.perplexity.value,
        "base_perplexity": found.base_perplexity.value,
        **{name: estimate.value for name, estimate in told.items()},
        **{f"{name}_interval": [estimate.low, estimate.high] for name, estimate in told.items()},
        "predictions": found.predictions,
        "sha256": found.source.sha256,
    }


def device_name(device: str) -> str:
    """Of the GPU, or of the processor, that the cases run on."""
    import torch

    from codegemm.engines.cpu import device as processor
    from codegemm.hf import generation

    where = generation.device_named(device)
    return torch.cuda.get_device_name(where) if where.type == "cuda" else processor.name()
