"""What group scales by search, rotation and calibration gain on MiniLM: `python -m benchmarks.quantize.trained`.

Each of the encoder's linear layers is quantised in several ways. The error of a layer is |W - W'|^2 / |W|^2 and, of its
output on topics of Python's own documentation that no calibration saw, |X (W - W')^T|^2 / |X W^T|^2; rows are the means
over the layers. The result is benchmarks/results/quantize-minilm.json; the exit status is 1 where calibration gains
less than a quarter.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

import codegemm
from codegemm.engines.cpu import device
from codegemm.exploration.measure import energy
from codegemm.measuring.sources import minilm
from codegemm.quantize import additive
from codegemm.quantize.schedule import Pass, Schedule
from codegemm.reporting import write_json
from codegemm.version import __version__

RESULT = Path(__file__).parents[1] / "results" / "quantize-minilm.json"
LEAST_GAIN = 0.25
TOKENS = 20_000  # read on each side
_LENGTH, _BATCH = 256, 8  # tokens of a sequence, sequences at a time

# A configuration, and the ways in which it is reached.
CASES = {
    "m1v4g32": ("maximum", "plain", "rotated"),
    "m1v4g128": ("maximum", "plain", "rotated", "calibrated", "rotated calibrated"),
    "m1v4g-1": ("maximum", "plain", "rotated"),
    "m2v8g-1": ("plain", "rotated", "calibrated"),
}


@dataclass
class Layer:
    """One linear layer: W [M, K], and its inputs on topics to calibrate by and on others to measure on."""

    weight: npt.NDArray[np.float32]
    seen: codegemm.Calibration
    unseen: codegemm.Calibration


@dataclass(frozen=True)
class Row:
    """Means over the layers."""

    config: str
    way: str
    bits_per_weight: float
    weight_error: float
    output_error: float
    seconds: float


def main() -> int:
    """Measure the cases."""
    measured = layers()
    rows = []
    for config, ways in CASES.items():
        for way in ways:
            row = measure(config, way, measured)
            rows.append(row)
            print(
                f"{row.config:9} {row.way:19} {row.bits_per_weight:6.3f} bits  error of weights {row.weight_error:.4f}"
                f"  of outputs {row.output_error:.4f}  {row.seconds:5.1f} s",
                flush=True,
            )
    output = {(row.config, row.way): row.output_error for row in rows}
    gains = {c: 1 - output[c, "calibrated"] / output[c, "plain"] for c, ways in CASES.items() if "calibrated" in ways}
    for config, gain in gains.items():
        print(f"{config}: calibration lessens the outputs' error by {gain:.0%}, at least {LEAST_GAIN:.0%} are wanted")
    report = {"version": __version__, "device": device.name(), "layers": len(measured)}
    report |= {"rows_seen": measured[0].seen.rows, "rows_unseen": measured[0].unseen.rows}
    write_json(report | {"rows": rows}, RESULT)
    return int(min(gains.values()) < LEAST_GAIN)


def layers() -> list[Layer]:
    """All linear layers of the encoder. Every second topic is seen, the others are not."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(minilm()).eval(), AutoTokenizer.from_pretrained(minilm())
    topics = importlib.import_module("pydoc_data.topics").topics
    texts = [topics[name] for name in sorted(topics)]
    linear = [part for part in model.encoder.modules() if isinstance(part, torch.nn.Linear)]
    found = [
        Layer(part.weight.detach().numpy(), *(codegemm.Calibration(part.in_features) for _ in range(2)))
        for part in linear
    ]
    for side, chosen in (("seen", texts[::2]), ("unseen", texts[1::2])):
        for ids in _batches(tokenizer, chosen):
            with ExitStack() as hooks, torch.no_grad():
                for part, layer in zip(linear, found):
                    add = getattr(layer, side).update
                    hooks.enter_context(part.register_forward_pre_hook(lambda _, inputs, add=add: add(inputs[0])))
                model(input_ids=ids)
    return found


def _batches(tokenizer: Any, texts: Iterable[str]) -> Iterator[Any]:
    """Token ids [sequences, tokens] of whole sequences, up to TOKENS in all."""
    import torch

    room = _LENGTH - 2
    ids = itertools.chain.from_iterable(
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts
    )
    taken = list(itertools.islice(ids, TOKENS // room * room))
    rows = torch.tensor(taken).reshape(-1, room)
    edge = torch.ones(len(rows), 1, dtype=rows.dtype)
    whole = torch.cat([edge * tokenizer.cls_token_id, rows, edge * tokenizer.sep_token_id], 1)
    yield from whole.split(_BATCH)


def measure(config: str, way: str, measured: list[Layer]) -> Row:
    """One way for all layers."""
    begin = time.perf_counter()
    weights = [quantized(layer, config, way) for layer in measured]
    seconds = time.perf_counter() - begin
    figures = [
        (
            weight.bits_per_weight,
            energy(layer.weight, less=dense) / energy(layer.weight),
            energy(layer.weight, layer.unseen.H, dense) / energy(layer.weight, layer.unseen.H),
        )
        for layer, weight, dense in ((layer, weight, weight.dequantize()) for layer, weight in zip(measured, weights))
    ]
    return Row(config, way, *map(float, np.mean(figures, axis=0)), seconds / len(measured))


def quantized(layer: Layer, config: str, way: str) -> codegemm.Weight:
    """The layer's weight; `maximum` takes scales from the largest weight of a group and leaves them."""
    with ExitStack() as patched:
        if way == "maximum":
            patched.enter_context(patch.object(additive, "root_mean_squares", maxima))
            patched.enter_context(patch.object(additive, "_fit_scales", kept))
            patched.enter_context(patch.object(additive.Schedule, "of", without_search(additive.Schedule.of)))
        calibration = layer.seen if "calibrated" in way else None
        return codegemm.quantize(layer.weight, config, rotate="rotated" in way, calibration=calibration)


def maxima(matrix: npt.NDArray[np.float32], group: int) -> npt.NDArray[np.float64]:
    """Of the magnitudes of each group of matrix [M, K], [M, K/group]."""
    return np.abs(matrix).reshape(len(matrix), -1, group).max(-1).astype(np.float64)


def without_search(of: Callable[..., Schedule]) -> Callable[..., Schedule]:
    """Schedules that try no other scales."""

    def schedule(*arguments: Any) -> Schedule:
        plan = of(*arguments)
        return replace(plan, passes=tuple(Pass(one.beam) for one in plan.passes))

    return schedule


def kept(
    groups: npt.NDArray[np.float32], decoded: npt.NDArray[np.float32], scales: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Scales [R, K/g] as they are, and the squared error of each group."""
    gap = ((groups - scales[..., None] * decoded).astype(np.float64) ** 2).sum(-1)
    return scales, gap


if __name__ == "__main__":
    sys.exit(main())
