"""What a stage's matrices have as inputs, before and behind what is quantised already: sums of products over rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from codegemm.calibration import Calibration
from codegemm.hf.blockwise.targets import correction

CAP = 10.0  # times the median of their norms: longer rows count as if they were so long
_ROWS = 1024  # multiplied in float32; sums of these in float64


@dataclass
class Moments:
    """Of rows x as the quantised model has them and o as the original has them, [rows, K] each.

    own: sum of x^T x; cross: sum of o^T x, both [K, K]. rows: how many; capped: how many of them were too long.
    """

    own: torch.Tensor
    cross: torch.Tensor
    rows: int = 0
    capped: int = 0

    @classmethod
    def empty(cls, in_features: int) -> Moments:
        """Of no rows."""
        return cls(*(torch.zeros(in_features, in_features, dtype=torch.float64) for _ in range(2)))

    def add(self, x: torch.Tensor, original: torch.Tensor) -> None:
        """The rows of one part of the text, those of x and of the original in the same order.

        A row that is many times as long as most, as those of the first tokens are in some layers, would be all that
        counts: it is weighed as one of `CAP` times the median length.
        """
        for rows, others in zip(x.split(_ROWS), original.split(_ROWS)):
            factors, capped = weights(rows)
            rows, others = rows.float() * factors, others.float() * factors
            self.own += (rows.T @ rows).double().cpu()
            self.cross += (others.T @ rows).double().cpu()
            self.rows += len(rows)
            self.capped += capped

    @cached_property
    def calibration(self) -> Calibration:
        """Of the rows x, for all matrices that have them as inputs."""
        return Calibration.of(self.own.numpy(), self.rows)

    @cached_property
    def correction(self) -> npt.NDArray[np.float64]:
        """For all of them: see `targets.correction`."""
        return correction(self.own.numpy(), self.cross.numpy())

    @property
    def is_finite(self) -> bool:
        """Whether there was no NaN or infinity."""
        return bool(torch.isfinite(self.own).all()) and bool(torch.isfinite(self.cross).all())

    def plus(self, other: Moments) -> Moments:
        """Of the rows of both."""
        return Moments(
            self.own + other.own, self.cross + other.cross, self.rows + other.rows, self.capped + other.capped
        )


def weights(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """By what the rows [R, K] are multiplied, [R, 1], and how many of them are made shorter."""
    norms = x.float().norm(dim=1, keepdim=True)
    most = CAP * norms.median()
    long = norms > most
    return torch.where(long, most / norms, torch.ones_like(norms)), int(long.sum())
