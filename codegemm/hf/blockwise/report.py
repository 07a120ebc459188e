"""What is said of a model that was quantised for a text: a report by layer, and what its card says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from codegemm.hf.allocation.runner import Allocation
from codegemm.hf.blockwise.matrix import Layer
from codegemm.hf.distillation.train import Course
from codegemm.version import __version__

FILE = "quantization_report.json"


def bits_per_weight(layers: Iterable[Layer]) -> float:
    """Over all of these, everything counted."""
    sizes = [(layer.shape[0] * layer.shape[1], layer.bits_per_weight) for layer in layers]
    return sum(size * bits for size, bits in sizes) / sum(size for size, _ in sizes)


def content(layers: Sequence[Layer], told: Mapping[str, Any]) -> bytes:
    """Of the report's file. told: of the whole model."""
    said = {"version": __version__, "bits_per_weight": bits_per_weight(layers), **told}
    return json.dumps({**said, "layers": [asdict(layer) for layer in layers]}, indent=1).encode() + b"\n"


def summary(layers: Sequence[Layer], tokens: int, texts: Sequence[str]) -> list[str]:
    """Lines for the card, of what was measured."""
    lines = [f"{len(layers)} matrices, {bits_per_weight(layers):.3f} bits per weight over them, everything counted."]
    if tokens:
        known = [layer for layer in layers if layer.output_error is not None]
        names = f" of {', '.join(texts)}" if texts else ""
        lines.append(f"Quantised block by block for {tokens} tokens{names}, each for what the blocks before it give.")
        if known:
            worst = max(known, key=lambda layer: layer.output_error or 0.0)
            mean = sum(layer.output_error or 0.0 for layer in known) / len(known)
            lines.append(
                f"Squared error of a layer's outputs on that text, relative to the outputs: {mean:.4f} on average, at "
                f"most {worst.output_error:.4f} ({worst.name})."
            )
        unknown = [layer.name for layer in layers if layer.output_error is None]
        if unknown:
            count = f"{len(unknown)} matrices" if len(unknown) > 1 else "1 matrix"
            lines.append(
                f"{count} got no calibration, for too little of it came there or the format takes none; the first is "
                f"{unknown[0]}."
            )
    else:
        lines.append("Quantised without a text.")
    return lines


def taught(tokens: int, course: Course) -> str:
    """A line for the card, of distillation."""
    return (
        f"Then distilled: codebooks, scales and norms trained on {tokens} tokens to give the original's predictions; "
        f"the divergence from them went from {course.first:.3f} to {course.last:.3f} nats a token on that text."
    )


def allocated(allocation: Allocation) -> str:
    """A line for the card, of bits by layer."""
    counts = Counter(allocation.layers.values()).most_common()
    return (
        f"Bits by layer, {allocation.bits:g} in the mean at most: by how far errors in a matrix take the model's "
        f"predictions from what they were, measured on {allocation.measured.tokens} tokens. "
        f"{', '.join(f'{config}: {count}' for config, count in counts)}."
    )
