"""A model's quantised layers and norms, trained on a text to give the original's predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from codegemm.engines.cpu.device import available_memory
from codegemm.formats.weight import Weight
from codegemm.hf import experts
from codegemm.hf.blockwise.skeleton import Skeleton, check_logits
from codegemm.hf.blockwise.stages import with_layers
from codegemm.hf.distillation.student import Student
from codegemm.hf.distillation.train import Course, Lessons, train

# For each that goes into or out of a linear layer, till the way back: norms and activations hold some.
_KEPT_NUMBERS = 3


def distil(
    skeleton: Skeleton,
    names: experts.Names,
    weights: Iterable[tuple[str, Weight]],
    text: torch.Tensor,
    lessons: Lessons,
    kept: Path,
    device: str,
    heard: Callable[[int, float], None],
) -> tuple[dict[str, Weight], dict[str, torch.Tensor], Course]:
    """Weights and norms as they were learnt, by their names, and how that went. kept: as of `train`.

    ValueError for a model that gives no logits.
    """
    check_logits("distill", skeleton.model)
    with skeleton.whole() as model:
        model.to(device)
        student = Student.of(with_layers(model, names, model.config), iter(weights))
        if _needs_recomputing(student, lessons, device):
            student.recompute(student.model.get_submodule(skeleton.blocks))

        def base(ids: torch.Tensor) -> Any:
            return model(input_ids=ids, use_cache=False).logits

        course = train(student, base, text, lessons, kept, heard)
        norms = {name: parameter.detach() for name, parameter in student.norms.items()}
        return student.weights(), norms, course


def _needs_recomputing(student: Student, lessons: Lessons, device: str) -> bool:
    """Whether what the way back needs would take more than a quarter of the memory that is free."""
    layers = student.layers.values()
    tokens = lessons.together * lessons.length
    inner = sum(_KEPT_NUMBERS * tokens * (layer.in_features + layer.out_features) for layer in layers)
    dense = sum(2 * layer.in_features * layer.out_features for layer in layers)
    free = available_memory() if device == "cpu" else torch.cuda.mem_get_info()[0]
    return 4 * (inner + dense) > free / 4
