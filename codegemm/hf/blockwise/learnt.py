"""Distillation of a model that was quantised block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from codegemm import cache
from codegemm.formats.weight import Weight
from codegemm.hf import experts
from codegemm.hf.blockwise.kept import Kept
from codegemm.hf.blockwise.skeleton import Skeleton
from codegemm.hf.blockwise.surroundings import quiet
from codegemm.hf.blockwise.text import Text
from codegemm.hf.distillation.runner import distil
from codegemm.hf.distillation.train import Course, Lessons
from codegemm.quantize.progress import Progress
from codegemm.quantize.stored import digest


@dataclass(frozen=True)
class Learnt:
    """By distillation, by their names; course: how it went."""

    weights: Mapping[str, Weight]
    norms: Mapping[str, torch.Tensor]
    course: Course


def learn(skeleton: Skeleton, kept: Kept, text: Text, lessons: Lessons, device: str, key: str, bar: Progress) -> Learnt:
    """What distillation makes of the quantised weights; this process does it alone. key: of all that they depend on."""
    rows = text.drawn(lessons)
    bar.total(lessons.steps)
    seen = 0

    def heard(step: int, divergence: float) -> None:
        nonlocal seen
        bar.name(f"KL {divergence:.4f}")
        bar.advance(step + 1 - seen)
        seen = step + 1

    state = kept.parts.state(cache.key(key, str(lessons), digest(rows.numpy())))
    weights = ((name, kept.weight(name)) for name in sorted(kept.stored))  # found or made, in one order
    with quiet():
        names = experts.names_of(skeleton.model)
        return Learnt(*distil(skeleton, names, weights, rows, lessons, state, device, heard))
