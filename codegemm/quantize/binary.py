"""Binary codes: each weight the sum of +-1 times a scale in several planes, by alternating least squares.

The sums that the scales of a group can make are few numbers, the same with either sign. So the nearest of them gives a
weight's signs exactly, and the scales that are best for given signs follow from how many weights got each sum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.codebook_config import CodebookConfig, all_signs
from codegemm.quantize.arithmetic import Arithmetic
from codegemm.quantize.hessian import Hessian, Tie
from codegemm.quantize.progress import Progress
from codegemm.quantize.scaling import halves, row_blocks
from codegemm.quantize.search import Vectors
from codegemm.quantize.stopping import Stop

_ROUNDS, _ENOUGH = 24, 1e-4  # of signs and scales in turns; the relative gain of a round that is the last one
_RIDGE = 1e-6
_LEAST = 2.0**-14  # the smallest normal float16
_CALIBRATED_ROUNDS = 2  # of signs with errors fed back and scales
_SPAN = 128  # columns whose errors reach those behind them together, by one product
_TOGETHER = 1024  # rows
_NORMAL = 1 << 24  # numbers of the equations of scales that are held at a time

Planes = npt.NDArray[np.bool_]


def quantize(
    matrix: Vectors,
    config: CodebookConfig,
    planes: int,
    H: npt.NDArray[np.float64] | None,
    ops: Arithmetic,
    stop: Stop,
    progress: Progress,
) -> CodebookWeight:
    """The core [M, planes * K] of a weight near matrix [M, K], plane after plane; config: of one of them.

    H: X^T X of a calibration, [K, K], or None. With it errors are fed back, column by column, and are weighed by H and
    its damping; rows for which that isn't better are as without. ValueError where scales don't fit float16, or all are
    so small that it rounds them coarsely.
    """
    rows, columns = matrix.shape
    groups = columns // config.group_size(columns)
    scales = np.empty((rows, groups, planes), np.float32)
    codes = np.empty((rows, planes, columns // config.v), np.uint8)
    blocks = list(row_blocks(matrix))
    fed = [] if H is None else [slice(first, first + _TOGETHER) for first in range(0, rows, _TOGETHER)]
    progress.total(len(blocks) + len(fed))

    def work(number: int) -> None:
        part = blocks[number]
        held = matrix[part].reshape(-1, columns // groups)
        scales[part] = halves(_fitted(held, planes, stop)).reshape(-1, groups, planes)
        codes[part] = _packed(nearest(held, scales[part].reshape(-1, planes)), len(matrix[part]), config.v)
        progress.advance()

    ops.map(work, range(len(blocks)))
    if scales.max() < _LEAST and matrix.any():
        raise ValueError(
            f"W: the largest weight is {abs(matrix).max():.3g}: too small for the float16 scales of signs, of which "
            f"the largest must be at least {_LEAST:.2g}"
        )
    if H is not None:
        hessian = Hessian.of(H, 1)
        for part in fed:
            if not stop.is_due():
                signs, scales[part] = _calibrated(matrix[part], scales[part], hessian)
                codes[part] = _packed(signs, len(matrix[part]), config.v)
            progress.advance()
    by_plane = np.ascontiguousarray(scales.transpose(0, 2, 1).reshape(rows, -1), np.float16)
    return CodebookWeight(codes.reshape(rows, -1, 1), all_signs(config.v)[None], by_plane)


def _fitted(groups: Vectors, planes: int, stop: Stop) -> Vectors:
    """Scales [n, planes], none negative, that are good for groups [n, g] of weights."""
    size = abs(groups)
    scales = _greedy(size, planes)
    power = np.einsum("ng,ng->n", size, size, dtype=np.float64)
    before = np.inf
    for _ in range(_ROUNDS):
        count, total, patterns = _cells(size, scales)
        normal = np.einsum("np,npi,npj->nij", count, patterns, patterns)
        right = np.einsum("np,npi->ni", total, patterns)
        # Signs that no two planes have apart leave their scales as they are.
        ridge = _RIDGE * size.shape[1]
        normal += ridge * np.eye(planes)
        found = np.linalg.solve(normal, (right + ridge * scales)[..., None])[..., 0]
        errors = power - 2 * np.einsum("ni,ni->n", found, right) + np.einsum("ni,nij,nj->n", found, normal, found)
        # In terms of each group: what large ones leave says nothing of small ones.
        error = np.divide(errors, power, out=np.zeros_like(power), where=power > 0).mean()
        scales = abs(found).astype(np.float32)
        if stop.is_due() or not before - error > _ENOUGH * error:
            break
        before = error
    return scales


def _greedy(size: Vectors, planes: int) -> Vectors:
    """Each plane's scale the mean of what the planes before it leave."""
    left, scales = size.copy(), np.empty((len(size), planes), np.float32)
    for plane in range(planes):
        scales[:, plane] = left.mean(1)
        left = abs(left - scales[:, plane, None])
    return scales


def _levels(scales: Vectors) -> tuple[Vectors, npt.NDArray[np.float32]]:
    """The sums that are not negative, in order [n, 2**(planes - 1)], and the signs that make them [n, sums, planes]."""
    planes = scales.shape[1]
    signs = all_signs(planes)[1::2].astype(np.float32)  # +1 in the first plane; the others are these negated
    sums = scales @ signs.T
    order = np.argsort(abs(sums), 1, kind="stable")
    sums = np.take_along_axis(sums, order, 1)
    patterns = signs[order] * np.where(sums < 0, np.float32(-1), np.float32(1))[..., None]
    return abs(sums), patterns


def _cells(
    size: Vectors, scales: Vectors
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """How many magnitudes of a group [n, g] are nearest to each sum, their total, both [n, sums], and its signs."""
    levels, patterns = _levels(scales)
    beyond = np.zeros((len(size), levels.shape[1] + 1))
    totals = np.zeros_like(beyond)
    beyond[:, 0], totals[:, 0] = size.shape[1], size.sum(1, dtype=np.float64)
    for place in range(1, levels.shape[1]):
        above = size > (levels[:, place - 1 : place] + levels[:, place : place + 1]) / 2
        beyond[:, place], totals[:, place] = above.sum(1), np.einsum("ng,ng->n", size, above, dtype=np.float64)
    return beyond[:, :-1] - beyond[:, 1:], totals[:, :-1] - totals[:, 1:], patterns


def nearest(groups: Vectors, scales: Vectors) -> Planes:
    """The signs [planes, n, g], True for +1, whose sums of scales [n, planes] are nearest to weights [n, g]."""
    levels, patterns = _levels(scales)
    size, place = abs(groups), np.zeros(groups.shape, np.uint8)
    for level in range(1, levels.shape[1]):
        place += size > (levels[:, level - 1 : level] + levels[:, level : level + 1]) / 2
    positive, negative = patterns > 0, groups < 0
    return np.stack([np.take_along_axis(plane, place, 1) ^ negative for plane in np.moveaxis(positive, 2, 0)])


def _packed(signs: Planes, rows: int, v: int) -> npt.NDArray[np.uint8]:
    """Codes [rows, planes, K/v] of v signs each, of signs [planes, ...]."""
    apart = signs.reshape(len(signs), rows, -1, v)
    return np.packbits(apart, axis=3, bitorder="little")[..., 0].swapaxes(0, 1)


def _calibrated(matrix: Vectors, scales: Vectors, hessian: Hessian) -> tuple[Planes, Vectors]:
    """Signs [planes, R, K] and scales [R, K/g, planes] of rows [R, K]: the nearest signs and these scales, or what was
    found with less error."""
    count, groups, planes = scales.shape
    best = nearest(matrix.reshape(count * groups, -1), scales.reshape(-1, planes)).reshape(planes, *matrix.shape)
    least = _weighed(matrix, best, scales, hessian.before)
    kept = scales.copy()
    for _ in range(_CALIBRATED_ROUNDS):
        start = kept.copy()
        signs = _feed_back(matrix, start, hessian.before)
        for candidate in (start, _refitted(matrix, signs, start, hessian.all.matrix)):
            error = _weighed(matrix, signs, candidate, hessian.before)
            better = error < least
            best[:, better], kept[better], least[better] = signs[:, better], candidate[better], error[better]
    return best, kept


def _dense(signs: Planes, scales: Vectors) -> Vectors:
    """[R, K] of signs [planes, R, K] and scales [R, K/g, planes]."""
    total = np.zeros(signs.shape[1:], np.float32)
    for plane, positive in enumerate(signs):
        each = np.repeat(scales[:, :, plane], positive.shape[1] // scales.shape[1], 1)
        total += np.where(positive, each, -each)
    return total


def _weighed(matrix: Vectors, signs: Planes, scales: Vectors, tie: Tie) -> npt.NDArray[np.float32]:
    """The error of each row."""
    return np.square((matrix - _dense(signs, scales)) @ tie.matrix).sum(1)


def _feed_back(matrix: Vectors, scales: Vectors, tie: Tie) -> Planes:
    """Signs [planes, R, K], a column's chosen for what the errors of columns before it leave to mend (as
    `sweep.choose`)."""
    rows, columns = matrix.shape
    size = columns // scales.shape[1]
    signs = np.empty((scales.shape[2], rows, columns), bool)
    pull = np.zeros_like(matrix)
    for first in range(0, columns, _SPAN):
        end = min(first + _SPAN, columns)
        errors = np.empty((rows, end - first), np.float32)
        for j in range(first, end):
            its = scales[:, j // size]
            target = matrix[:, j] + pull[:, j] * tie.inverse[j, 0, 0]
            signs[:, :, j] = nearest(target[:, None], its)[..., 0]
            chosen = np.where(signs[:, :, j].T, its, -its).sum(1)
            errors[:, j - first] = matrix[:, j] - chosen
            pull[:, j + 1 : end] += errors[:, j - first, None] * tie.matrix[j, j + 1 : end]
        pull[:, end:] += errors @ tie.matrix[first:end, end:]
    return signs


def _refitted(matrix: Vectors, signs: Planes, scales: Vectors, H: npt.NDArray[np.float32]) -> Vectors:
    """Scales [R, K/g, planes], halves as float32, of rows by least squares in terms of H, for these signs; rows whose
    scales float16 doesn't hold keep theirs."""
    count, groups, planes = scales.shape
    unknowns, result = groups * planes, scales.copy()
    for first in range(0, count, step := max(1, _NORMAL // unknowns**2)):
        part = slice(first, min(first + step, count))
        plain = np.where(signs[:, part], np.float32(1), np.float32(-1)).reshape(planes, -1, groups, len(H) // groups)
        normal, right = _equations(matrix[part], plain, H)
        ridge = _RIDGE * np.trace(normal, axis1=1, axis2=2) / unknowns
        normal += ridge[:, None, None] * np.eye(unknowns)
        start = scales[part].transpose(0, 2, 1).reshape(-1, unknowns)
        found = np.linalg.solve(normal, (right + ridge[:, None] * start)[..., None])[..., 0]
        with np.errstate(over="ignore"):
            stored = found.astype(np.float16).astype(np.float32)
        fits = np.isfinite(stored).all(1, keepdims=True)
        result[part] = np.where(fits, stored, start).reshape(-1, planes, groups).transpose(0, 2, 1)
    return result


def _equations(
    matrix: Vectors, plain: Vectors, H: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Normal equations [R, planes * K/g, planes * K/g] and right sides, for signs as +-1 [planes, R, K/g, g]."""
    planes, count, groups, size = plain.shape
    wanted = (matrix @ H).reshape(count, groups, size)
    right = np.einsum("irgk,rgk->rig", plain, wanted, dtype=np.float64).reshape(count, -1)
    normal = np.empty((count, planes, groups, planes, groups))
    for plane in range(planes):
        for g in range(groups):
            pulled = (plain[plane, :, g] @ H[g * size : (g + 1) * size]).reshape(count, groups, size)
            normal[:, plane, g] = np.einsum("rhk,jrhk->rjh", pulled, plain, dtype=np.float64)
    return normal.reshape(count, planes * groups, -1), right
