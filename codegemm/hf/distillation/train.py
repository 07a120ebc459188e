"""The lessons: steps of Adam on the divergence from the original's predictions."""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from codegemm.counts import count
from codegemm.files import replace_file
from codegemm.hf.distillation.divergence import mean_divergence
from codegemm.hf.distillation.student import Student

_BETAS = (0.9, 0.98)
_WARM, _LEAST = 0.05, 0.05  # of the steps, till the rate is full; of the rate, at the end
_SECONDS = 120.0  # between states that are kept


@dataclass(frozen=True)
class Lessons:
    """How to learn, from so many tokens of text. length: of a row, in tokens. rows: of text a step; together: of them
    that go through the models at once. rate: of a step, in root mean squares of what changes. ValueError for what these
    can't be."""

    tokens: int
    length: int = 512
    rows: int = 2
    together: int = 2
    rate: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("length", 2), ("rows", 1), ("together", 1), ("seed", 0)):
            count(f"lessons: {name}", getattr(self, name), least)
        if not (isinstance(self.rate, Real) and 0 < self.rate < math.inf):
            raise ValueError(f"lessons: rate={self.rate!r}: must be a number above 0")

    @property
    def steps(self) -> int:
        """As many as the tokens are enough for."""
        return max(self.tokens // (self.rows * self.length), 1)

    def rate_at(self, step: int) -> float:
        """Of the full rate: a rise, then half a cosine."""
        warm = max(round(_WARM * self.steps), 1)
        left = (1 + math.cos(math.pi * step / self.steps)) / 2
        return min((step + 1) / warm, 1.0) * (_LEAST + (1 - _LEAST) * left)


@dataclass
class Course:
    """How it went: the divergence at each step, in nats, and the seconds of all."""

    divergences: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def first(self) -> float:
        """The mean of the first tenth."""
        return _mean(self.divergences[: max(len(self.divergences) // 10, 1)])

    @property
    def last(self) -> float:
        """The mean of the last tenth."""
        return _mean(self.divergences[-max(len(self.divergences) // 10, 1) :])


def train(
    student: Student,
    base: Callable[[torch.Tensor], torch.Tensor],
    text: torch.Tensor,
    lessons: Lessons,
    kept: Path,
    heard: Callable[[int, float], None],
) -> Course:
    """Let a student learn from token ids [steps * rows, length].

    base: gives the original's logits. kept: a file of the state, from which another call with the same arguments goes
    on; it is written every two minutes. heard: is told each step's number and divergence. ValueError where that is no
    number any more.
    """
    optimizer = torch.optim.Adam(student.groups(lessons.rate), betas=_BETAS)
    course, begin, device = Course(), 0, student.trained[0].device
    state = _read(kept)
    if state is not None:
        begin = _restore(state, student, optimizer, course)
    before, saved = course.seconds, time.monotonic()
    start = saved
    for step in range(begin, lessons.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * lessons.rate_at(step)
        total, rows = 0.0, text[step * lessons.rows : (step + 1) * lessons.rows].to(device)
        for part in rows.split(lessons.together):
            with torch.no_grad():
                right = base(part)
            loss = mean_divergence(student.model(input_ids=part, use_cache=False).logits, right)
            share = len(part) / len(rows)
            (loss * share).backward()
            total += float(loss.detach()) * share
        if not math.isfinite(total):
            raise ValueError(
                f"distillation: step {step}: the divergence is {total}; a lower rate than {lessons.rate} helps"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        course.divergences.append(total)
        course.seconds = before + time.monotonic() - start
        if time.monotonic() - saved > _SECONDS:
            _keep(kept, step + 1, student, optimizer, course)
            saved = time.monotonic()
        heard(step, total)
    _keep(kept, lessons.steps, student, optimizer, course)
    return course


def _keep(path: Path, step: int, student: Student, optimizer: torch.optim.Adam, course: Course) -> None:
    """Write all that changes, whole or not at all."""
    content = io.BytesIO()
    trained = [parameter.detach() for group in optimizer.param_groups for parameter in group["params"]]
    state = {"step": step, "trained": trained, "optimizer": optimizer.state_dict(), **vars(course)}
    torch.save(state, content)
    replace_file(path, [content.getbuffer()])


def _read(path: Path) -> dict[str, Any] | None:
    """A state that was kept; None where there is none, or not a whole one."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError):
        return None
    return state


def _restore(state: dict[str, Any], student: Student, optimizer: torch.optim.Adam, course: Course) -> int:
    """The step that comes next."""
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with torch.no_grad():
        for parameter, value in zip(trained, state["trained"], strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    course.divergences, course.seconds = list(state["divergences"]), float(state["seconds"])
    return int(state["step"])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
