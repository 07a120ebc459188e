"""What group scales by search, rotation and calibration gain on MiniLM: `python -m benchmarks.quantize.trained`.

Each of the encoder's linear layers is quantised in several ways. The error of a layer is |W - W'|^2 / |W|^2 and, of its
output on topics that no calibration saw, |X (W - W')^T|^2 / |X W^T|^2; rows are the means over the layers. The result
is benchmarks/results/quantize-minilm.json; the exit status is 1 where calibration gains less than a quarter.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

import codegemm
from benchmarks.quantize.activations import Layer, layers
from codegemm.engines.cpu import device
from codegemm.exploration.measure import energy
from codegemm.quantize import additive
from codegemm.quantize.scaling import row_blocks
from codegemm.quantize.schedule import Pass, Schedule
from codegemm.version import __version__

RESULT = Path(__file__).parents[1] / "results" / "quantize-minilm.json"
LEAST_GAIN = 0.25

# A configuration, and the ways in which it is reached.
CASES = {
    "m1v4g32": ("maximum", "plain", "rotated"),
    "m1v4g128": ("maximum", "plain", "rotated", "calibrated", "rotated calibrated"),
    "m1v4g-1": ("maximum", "plain", "rotated"),
    "m2v8g-1": ("plain", "rotated", "calibrated"),
}


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
            rows.append(measure(config, way, measured))
            row = rows[-1]
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
    report["rows_seen"], report["rows_unseen"] = measured[0].seen.rows, measured[0].unseen.rows
    RESULT.write_text(json.dumps(report | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return int(min(gains.values()) < LEAST_GAIN)


def measure(config: str, way: str, measured: list[Layer]) -> Row:
    """One way for all layers."""
    begin = time.perf_counter()
    weights = [quantized(layer, config, way) for layer in measured]
    seconds = time.perf_counter() - begin
    gaps = [layer.weight - weight.dequantize() for layer, weight in zip(measured, weights)]
    return Row(
        config,
        way,
        float(np.mean([weight.bits_per_weight for weight in weights])),
        float(np.mean([energy(gap) / energy(layer.weight) for layer, gap in zip(measured, gaps)])),
        float(
            np.mean(
                [
                    energy(gap, layer.unseen.H) / energy(layer.weight, layer.unseen.H)
                    for layer, gap in zip(measured, gaps)
                ]
            )
        ),
        seconds / len(measured),
    )


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
    return np.concatenate(
        [np.abs(matrix[rows]).reshape(-1, matrix.shape[1] // group, group).max(-1) for rows in row_blocks(matrix)]
    ).astype(np.float64)


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
