"""What quantising does to a matrix, without doing it: random errors of the shape that calibrated quantisers leave."""

from __future__ import annotations

import math

import torch

from codegemm import cache
from codegemm.hf.blockwise.moments import weights
from codegemm.quantize.hessian import DAMPING

_VECTOR = 4  # weights that a code stands for
ERROR = 0.0625  # relative to the squared weights, before the shape: as at a little more than 2 bits


def gram(x: torch.Tensor) -> torch.Tensor:
    """The sum of x^T x [K, K] in float64 over rows x [rows, K]; rows that are very long count less, as when a matrix is
    quantised for them."""
    rows = x.float() * weights(x)[0]
    return (rows.T @ rows).double()


def triangle(total: torch.Tensor) -> torch.Tensor:
    """The upper triangle T of H = T T^T, where H is such a sum, damped as quantisers do."""
    damped = total / total.diagonal().mean()
    damped.diagonal().add_(DAMPING)
    return torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)


def rounding(upper: torch.Tensor) -> torch.Tensor:
    """By what the weights' deviations [K] are multiplied to give those of E T, for T of `triangle`.

    In a vector of weights a code spends its bits where errors cost most: with bits enough for errors of `ERROR` where
    all columns weigh the same, as much of the cost stays in each, and in columns that cost less all that they have
    (reverse water filling). So it is with a column of which a few rows of the text have huge inputs.
    """
    costs = upper.diagonal().square()
    missing = -len(costs) % _VECTOR  # of the last vector, which is filled up with its last column
    vectors = torch.cat([costs, costs[-1:].expand(missing)]).view(-1, _VECTOR)
    ordered = vectors.sort(1, descending=True).values.log()
    count = torch.arange(1, _VECTOR + 1, device=costs.device)
    levels = (ordered.cumsum(1) + _VECTOR * math.log(ERROR)) / count  # if bits go to so many columns, the dearest
    return torch.minimum(vectors, levels.amax(1, keepdim=True).exp()).flatten()[: len(costs)].sqrt()


def errors(matrix: torch.Tensor, upper: torch.Tensor | None, seed: int, name: str) -> torch.Tensor:
    """Random errors E for a matrix [M, K]: of each row in proportion to it, the same for the same seed and name.

    upper: T of its inputs' H. A quantiser that goes along a row chooses each weight so that it mends what the errors
    before it do to the output, and what it can't mend, in E T, is as random as `rounding` says. None: E itself is
    random, as without a calibration.
    """
    generator = torch.Generator().manual_seed(int(cache.key(str(seed), name)[:12], 16))
    own = torch.randn(matrix.shape, generator=generator).to(matrix.device)
    own *= matrix.float().square().mean(1, keepdim=True).sqrt()
    if upper is None:
        return own * math.sqrt(ERROR)
    shaped: torch.Tensor = torch.linalg.solve_triangular(upper, own.double() * rounding(upper), upper=True, left=False)
    return shaped.float()
