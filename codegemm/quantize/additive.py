"""Additive codebooks: fitted to samples of the vectors, then codes, scales and codebooks in turn over the matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codegemm.formats.bits import code_dtype
from codegemm.formats.codebook import CodebookWeight, decode
from codegemm.formats.codebook_config import CodebookConfig
from codegemm.quantize import start
from codegemm.quantize.arithmetic import Arithmetic
from codegemm.quantize.least_squares import Sums, solve, sums
from codegemm.quantize.progress import Progress
from codegemm.quantize.scaling import Sampler, halves, level, normalised, root_mean_squares, row_blocks
from codegemm.quantize.schedule import Pass, Schedule
from codegemm.quantize.search import Codes, Vectors, encode
from codegemm.quantize.stopping import Stop

_MAX_CROSS_PRODUCTS = 1 << 30  # bytes
_KEPT = 0.7  # the share of older sums that a round keeps


@dataclass
class _Coded:
    """Where the work on matrix [M, K] stands. W' is what a CodebookWeight of its arrays is.

    level: codebooks are kept divided by it, so that vectors are of about unit variance. codes: [M, K/v, m].
    scales: [M, K/g], halves as float32. codebooks: [m, 2**b, v].
    """

    matrix: Vectors
    level: float
    codes: npt.NDArray
    scales: Vectors
    codebooks: Vectors

    def round_codebooks(self) -> None:
        """To what is stored."""
        self.codebooks = halves(self.codebooks * np.float32(self.level)) / np.float32(self.level)


def quantize(
    matrix: Vectors, config: CodebookConfig, seed: int, arithmetic: Arithmetic, stop: Stop, progress: Progress
) -> CodebookWeight:
    """A CodebookWeight near matrix [M, K], minimising |W - W'|^2."""
    rows, columns = matrix.shape
    config.check_shape(rows, columns)
    table = 4 * config.m**2 * config.centroids**2
    if config.m > 1 and table > _MAX_CROSS_PRODUCTS:
        raise ValueError(
            f"config {config}: the joint search of {config.m} codebooks of 2^{config.b} centroids needs a table of "
            f"{table / 2**30:.1f} GiB, at most {_MAX_CROSS_PRODUCTS >> 30} are allowed: choose a smaller b or m=1"
        )
    rng = np.random.default_rng(seed)
    plan = Schedule.of(config, rows, columns)
    sizes = root_mean_squares(matrix, config.group_size(columns))
    unit = level(matrix, sizes)
    scales = halves(sizes / unit)
    progress.total(plan.rounds + sum(one.cost for one in plan.passes))
    draw = Sampler(matrix, scales * np.float32(unit), config.v, plan.sample, rng)
    codebooks = _fit(draw, config, plan, arithmetic, stop, progress)
    codes = np.zeros((rows, columns // config.v, config.m), code_dtype(config.b))
    coded = _Coded(matrix, unit, codes, scales, codebooks)
    coded.round_codebooks()
    for number, one in enumerate(plan.passes):
        first, last = number == 0, number == len(plan.passes) - 1
        totals = _improve(coded, one, first, not last, arithmetic, stop, progress)
        if totals is None:
            break
        coded.codebooks = solve(totals, coded.codebooks)
        coded.round_codebooks()
    return CodebookWeight(
        coded.codes,
        halves(coded.codebooks * np.float32(unit)).astype(np.float16),
        coded.scales.astype(np.float16),
    )


def _fit(
    draw: Sampler, config: CodebookConfig, plan: Schedule, arithmetic: Arithmetic, stop: Stop, progress: Progress
) -> Vectors:
    """Codebooks float32 [m, 2**b, v]: codes of a fresh sample, then least squares, `plan.rounds` times."""
    begin = start.product if plan.by_parts else start.residual
    codebooks = begin(*draw(), config, draw.rng, arithmetic)
    older: Sums | None = None
    for number in range(plan.rounds):
        if stop.is_due():
            break
        vectors, weights = draw()
        beam = plan.beams[number * len(plan.beams) // plan.rounds]
        totals = sums(vectors, encode(vectors, codebooks, beam, arithmetic), weights, config.centroids)
        # All vectors of a small matrix are in every sample: older codes of the same vectors say nothing new.
        if older is not None and not draw.draws_all:
            totals = totals.plus(older, _KEPT)
        codebooks, older = solve(totals, codebooks), totals
        progress.advance()
    return codebooks


def _improve(
    coded: _Coded, one: Pass, first: bool, collect: bool, arithmetic: Arithmetic, stop: Stop, progress: Progress
) -> Sums | None:
    """New codes and scales for every row; the sums that codebooks can be fitted to, where they are wanted.

    Where there is to be an end, a first pass goes on in the fastest way, since every row needs codes; a later one
    leaves the other rows as they are and gives None.
    """
    total: Sums | None = None
    centroids, v = coded.codebooks.shape[1:]
    for rows in row_blocks(coded.matrix):
        hurry = stop.is_due()
        if hurry and not first:
            return None
        block = coded.matrix[rows]
        codes, scales = _encode_rows(coded, rows, Pass(1, (1.0,)) if hurry else one, first, arithmetic)
        coded.codes[rows], coded.scales[rows] = codes.reshape(len(block), -1, codes.shape[1]), scales
        if collect:
            scaled = scales * np.float32(coded.level)
            weights = np.repeat(scaled.ravel().astype(np.float64) ** 2, block.size // v // scales.size)
            part = sums(normalised(block, scaled, v), codes, weights, centroids)
            total = part if total is None else part.plus(total, 1)
        progress.advance(one.cost * len(block) / len(coded.matrix))
    return total


def _encode_rows(coded: _Coded, rows: slice, one: Pass, first: bool, arithmetic: Arithmetic) -> tuple[Codes, Vectors]:
    """Codes [n, m] and scales [R, K/g] of a block of rows: those of the factor that errs least, group by group."""
    block, v, unit = coded.matrix[rows], coded.codebooks.shape[2], np.float32(coded.level)
    present = coded.scales[rows]
    groups = block.reshape(*present.shape, -1)
    if first:
        codes, scales, error = np.zeros((block.size // v, len(coded.codebooks)), np.uint16), present, None
    else:
        codes = coded.codes[rows].reshape(-1, len(coded.codebooks)).astype(np.uint16)
        decoded = decode(codes, coded.codebooks).reshape(groups.shape) * unit
        scales, error = _fit_scales(groups, decoded, present)
    for factor in one.factors:
        trial = halves(present * np.float32(factor))
        trial_codes = encode(normalised(block, trial * unit, v), coded.codebooks, one.beam, arithmetic)
        decoded = decode(trial_codes, coded.codebooks).reshape(groups.shape) * unit
        fitted, gap = _fit_scales(groups, decoded, trial)
        if error is None:
            codes, scales, error = trial_codes, fitted, gap
            continue
        better = gap < error
        scales, error = np.where(better, fitted, scales), np.where(better, gap, error)
        per_group = len(codes) // better.size
        codes = np.where(np.repeat(better.ravel(), per_group)[:, None], trial_codes, codes)
    return codes, scales


def _fit_scales(groups: Vectors, decoded: Vectors, scales: Vectors) -> tuple[Vectors, npt.NDArray[np.float64]]:
    """The scale of each group that fits its codes best, and the group's squared error with it.

    The scale that it had where the best is no positive half.
    """
    dot = np.einsum("rgk,rgk->rg", groups, decoded, dtype=np.float64, optimize=False)
    norm = np.einsum("rgk,rgk->rg", decoded, decoded, dtype=np.float64, optimize=False)
    best = np.divide(dot, norm, out=np.zeros_like(dot), where=norm > 0)
    with np.errstate(over="ignore"):
        rounded = best.astype(np.float16).astype(np.float32)
    rounded = np.where((rounded > 0) & np.isfinite(rounded), rounded, scales)
    whole = np.einsum("rgk,rgk->rg", groups, groups, dtype=np.float64, optimize=False)
    return rounded, whole + rounded * (rounded * norm - 2 * dot)
