"""Codes of rows, k-vector by k-vector, with the errors of the others in view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.formats.codebook import decode, decode_rows
from codegemm.quantize.arithmetic import Arithmetic
from codegemm.quantize.hessian import Tie
from codegemm.quantize.scaling import reciprocal
from codegemm.quantize.search import Search, Vectors

_SPAN = 128  # columns whose errors reach those behind them together, by one product


@dataclass
class Rows:
    """Some rows of W and how they are coded, as arrays of the library that computes: weights [R, K], codes [R, K/v, m],
    scales [R, K/g] and what they are divided by, inverse_scales; errors W - W'."""

    weights: Any
    codes: Any
    scales: Any
    inverse_scales: Any
    errors: Any

    @classmethod
    def of(cls, weights: Vectors, codes: npt.NDArray, scales: Vectors, codebooks: Vectors, ops: Arithmetic) -> Rows:
        """Rows as they are coded."""
        errors = weights - decode_rows(codes, codebooks, scales)
        return cls(*map(ops.put, (weights, codes.astype(np.intp), scales, reciprocal(scales), errors)))


def choose(rows: Rows, codebooks: Any, tie: Tie, beam: int, ops: Arithmetic) -> Rows:
    """The rows with new codes, each chosen for what the errors of k-vectors before it leave to mend (GPTQ's feedback,
    Babai's nearest plane): errors of those behind it are still to come."""
    codes, errors, pull = (ops.zeros_like(each) for each in (rows.codes, rows.errors, rows.errors))
    fresh = Rows(rows.weights, codes, rows.scales, rows.inverse_scales, errors)
    _sweep(fresh, codebooks, tie, pull, False, beam, ops)
    return fresh


def improve(rows: Rows, codebooks: Any, tie: Tie, beam: int, ops: Arithmetic) -> None:
    """Choose each code again, given all others, where that is better: no row gets worse."""
    _sweep(rows, codebooks, tie, rows.errors @ tie.matrix, True, beam, ops)


def _sweep(rows: Rows, codebooks: Any, tie: Tie, pull: Any, only_better: bool, beam: int, ops: Arithmetic) -> None:
    """One way over all k-vectors; pull [R, K] is what the errors known so far add up to, errors @ tie.matrix."""
    columns, v = rows.weights.shape[1], codebooks.shape[2]
    per_group = columns // v // rows.scales.shape[1]
    changes = ops.empty((len(rows.weights), _SPAN // v * v), rows.errors)
    for first in range(0, columns, changes.shape[1]):
        end = min(first + changes.shape[1], columns)
        for begin in range(first, end, v):
            here, j = slice(begin, begin + v), begin // v
            metric, error = tie.metric[j], rows.errors[:, here]
            others = pull[:, here] - error @ tie.matrix[here, here]
            target = rows.weights[:, here] + others @ tie.inverse[j]
            scale = rows.scales[:, j // per_group, None]
            vectors = (target * rows.inverse_scales[:, j // per_group, None]) @ metric
            codes = Search(codebooks @ metric, beam, ops)(vectors)
            new_error = rows.weights[:, here] - decode(codes, codebooks) * scale
            if only_better:
                gap = target - rows.weights[:, here]
                better = ops.squares((gap + new_error) @ metric) < ops.squares((gap + error) @ metric)
                codes = ops.where(better[:, None], codes, rows.codes[:, j])
                new_error = ops.where(better[:, None], new_error, error)
            change = new_error - error
            rows.codes[:, j], rows.errors[:, here] = codes, new_error
            pull[:, begin + v : end] += change @ tie.matrix[here, begin + v : end]
            changes[:, begin - first : begin - first + v] = change
        pull[:, end:] += changes[:, : end - first] @ tie.matrix[first:end, end:]
