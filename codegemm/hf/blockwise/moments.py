"""What a stage's matrices have as inputs, before and behind what is quantised already: sums of products over rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from codegemm.calibration import Calibration
from codegemm.hf.blockwise.targets import addition, correction

CAP = 10.0  # times the median of their norms: longer rows count as if they were so long
_FEWEST = 8  # rows are enough where there are at least in_features / 8
ROWS = 1024  # multiplied in float32; sums of these in float64


@dataclass
class Moments:
    """Of rows x as the quantised model has them and o as the original has them, [rows, K] each.

    own: sum of x^T x; cross: sum of o^T x, both [K, K]. lost: sum of d^T x [M, K] where products are added to a stream
    of hidden states, of which the original's rows are d above the quantised model's; else of no rows. rows: how many;
    capped: how many of them were too long.
    """

    own: torch.Tensor
    cross: torch.Tensor
    lost: torch.Tensor
    rows: int = 0
    capped: int = 0

    @classmethod
    def empty(cls, in_features: int, stream_width: int = 0, device: torch.device | str = "cpu") -> Moments:
        """Of no rows, to be added up on a device."""
        heights = in_features, in_features, stream_width
        return cls(*(torch.zeros(height, in_features, dtype=torch.float64, device=device) for height in heights))

    def add(self, x: torch.Tensor, original: torch.Tensor, lost: torch.Tensor | None = None) -> None:
        """The rows of one part of the text, those of x, of the original and of what is lost in the same order.

        A row that is many times as long as most, as those of the first tokens are in some layers, would be all that
        counts: it is weighed as one of `CAP` times the median length.
        """
        gaps = x[:, :0] if lost is None else lost
        for rows, others, gap in zip(x.split(ROWS), original.split(ROWS), gaps.split(ROWS)):
            factors, capped = weights(rows)
            rows, others = rows.float() * factors, others.float() * factors
            self.own += (rows.T @ rows).double()
            self.cross += (others.T @ rows).double()
            self.lost += ((gap.float() * factors).T @ rows).double()
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

    @cached_property
    def addition(self) -> npt.NDArray[np.float64] | None:
        """What is lost, as far as x can make it good: see `targets.addition`."""
        return addition(self.own.numpy(), self.lost.numpy()) if len(self.lost) else None

    @property
    def is_finite(self) -> bool:
        """Whether there was no NaN or infinity."""
        return all(bool(torch.isfinite(each).all()) for each in (self.own, self.cross, self.lost))

    def in_memory(self) -> Moments:
        """The same on the CPU, where several processes share them and matrices are quantised by them."""
        return Moments(self.own.cpu(), self.cross.cpu(), self.lost.cpu(), self.rows, self.capped)

    def plus(self, other: Moments) -> Moments:
        """Of the rows of both."""
        sums = self.own + other.own, self.cross + other.cross, self.lost + other.lost
        return Moments(*sums, self.rows + other.rows, self.capped + other.capped)


def weights(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """By what the rows [R, K] are multiplied, [R, 1], and how many of them are made shorter. Rows of zeros, as there
    are behind some activations, say nothing of how long others usually are."""
    norms = x.float().norm(dim=1, keepdim=True)
    most = CAP * (norms[norms != 0] if norms.any() else norms).median()  # a NaN is one of those
    long = norms > most
    return torch.where(long, most / norms, torch.ones_like(norms)), int(long.sum())


def are_enough(rows: int, in_features: int) -> bool:
    """Whether so many rows say enough of a matrix's inputs for it to be quantised for them."""
    return _FEWEST * rows >= in_features
