"""The text that a model is quantised for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from codegemm.counts import count
from codegemm.hf.blockwise import rows
from codegemm.hf.blockwise.skeleton import Skeleton
from codegemm.hf.distillation.train import Lessons
from codegemm.hf.generation import open_tokenizer
from codegemm.quantize.stored import digest

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Text:
    """What a model is quantised for: rows of token ids [rows, length].

    files: all token ids [tokens] of files by their names; none where rows were given.
    """

    ids: torch.Tensor
    files: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of the files, without folders."""
        return [Path(name).name for name in self.files]

    def fitted(self, lessons: Lessons) -> Lessons:
        """The lessons, of the rows' length where rows were given; ValueError for a file that is shorter than a row."""
        if not self.files:
            return replace(lessons, length=self.ids.shape[1])
        rows.whole(self.files, lessons.length)
        return lessons

    def drawn(self, lessons: Lessons) -> torch.Tensor:
        """Rows to learn from, for lessons that are fitted."""
        wanted = lessons.steps * lessons.rows * lessons.length
        return rows.shuffled(self.files or {"calibration": self.ids.flatten()}, lessons.length, wanted, lessons.seed)

    @property
    def key(self) -> str:
        """A hash of the rows."""
        return digest(self.ids.numpy())


def text_of(
    skeleton: Skeleton, folder: Path, given: Sequence[StrPath] | torch.Tensor, tokens: int, length: int
) -> Text:
    """About so many tokens of a calibration, in rows of `length`; ValueError or CheckpointError for what can't be."""
    vocabulary = skeleton.model.get_input_embeddings().weight.shape[0]
    if isinstance(given, torch.Tensor):
        if given.dim() != 2 or given.dtype != torch.long or not given.numel():
            raise ValueError(
                f"calibration: {given.dtype} {tuple(given.shape)}, must be token ids, int64 [rows, length]"
            )
        if int(given.max()) >= vocabulary or int(given.min()) < 0:
            raise ValueError(
                f"calibration: token ids from {int(given.min())} to {int(given.max())}, must be below {vocabulary}"
            )
        check_length(skeleton, given.shape[1])
        return Text(given.cpu())
    if isinstance(given, (str, os.PathLike)):
        raise TypeError(f"calibration {str(given)!r}: must be a list of files, or rows of token ids")
    count("tokens", tokens)
    check_length(skeleton, count("length", length))
    ids = rows.encoded(open_tokenizer(folder), files_of(given), vocabulary, str(folder))
    return Text(rows.spread(ids, length, tokens), ids)


def files_of(calibration: Sequence[StrPath] | torch.Tensor | None) -> list[Path]:
    """Of a calibration; none of rows."""
    if calibration is None or isinstance(calibration, (torch.Tensor, str, os.PathLike)):
        return []
    return [Path(path) for path in calibration]


def check_length(skeleton: Skeleton, length: int) -> None:
    """ValueError for rows that are longer than the model has positions."""
    positions = getattr(skeleton.model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ValueError(f"length={length}: the model has {positions} positions")
