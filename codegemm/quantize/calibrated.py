"""A codebook weight made better for its inputs: less of tr((W - W') H (W - W')^T) in the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.formats.codebook import CodebookWeight
from codegemm.quantize.arithmetic import Arithmetic
from codegemm.quantize.hessian import Tie, factored
from codegemm.quantize.output_fit import fit_codebooks, fit_scales
from codegemm.quantize.progress import Progress
from codegemm.quantize.scaling import halves
from codegemm.quantize.search import Vectors
from codegemm.quantize.stopping import Stop
from codegemm.quantize.sweep import Rows, choose, improve

_ROUNDS = 2  # of codes, codebooks and scales; codes once more follow
_BEAM = 8
_FEW = 64  # rows that are coded together, at least
_NORMAL = 1 << 24  # numbers of the equations of scales that are held at a time


def refine(
    matrix: Vectors,
    weight: CodebookWeight,
    H: npt.NDArray[np.float64],
    arithmetic: Arithmetic,
    stop: Stop,
    progress: Progress,
) -> CodebookWeight:
    """A weight of the same configuration for matrix [M, K] and inputs whose X^T X is H [K, K].

    No row errs more than it did, where errors are weighed by H and its damping.
    """
    hessian = factored(H, weight.config.v)
    codes = weight.codes.copy()
    codebooks, scales = weight.codebooks.astype(np.float32), weight.scales.astype(np.float32)
    before, tied = hessian.before.on(arithmetic), hessian.all.on(arithmetic)
    step = min(max(-(-len(matrix) // arithmetic.parts), _FEW), arithmetic.rows)
    blocks = _blocks(len(matrix), step)
    few = _blocks(len(matrix), min(step, max(1, _NORMAL // scales.shape[1] ** 2)))
    progress.total((_ROUNDS + 1) * len(blocks))

    def recode(anew: bool) -> None:
        """New codes for every row; where there is to be an end, the other rows stay as they are."""
        books = arithmetic.put(codebooks)

        def work(number: int) -> None:
            if not stop.is_due():
                part = blocks[number]
                rows = Rows.of(matrix[part], codes[part], scales[part], codebooks, arithmetic)
                if anew:
                    fresh = choose(rows, books, before, _BEAM, arithmetic)
                    better = _weighed(fresh, before) < _weighed(rows, before)
                    rows.codes[better], rows.errors[better] = fresh.codes[better], fresh.errors[better]
                improve(rows, books, tied, _BEAM, arithmetic)
                codes[part] = arithmetic.get(rows.codes)
            progress.advance()

        arithmetic.map(work, range(len(blocks)))

    for number in range(_ROUNDS):
        recode(anew=number == 0)
        if stop.is_due():
            break
        codebooks = halves(fit_codebooks(matrix, codes, scales, codebooks, hessian.all.matrix, arithmetic))
        for part in few:
            scales[part] = fit_scales(matrix[part], codes[part], scales[part], codebooks, hessian.all.matrix)
    recode(anew=False)
    return CodebookWeight(codes, codebooks.astype(np.float16), scales.astype(np.float16))


def _blocks(rows: int, step: int) -> list[slice]:
    return [slice(first, first + step) for first in range(0, rows, step)]


def _weighed(rows: Rows, before: Tie) -> Any:
    """The error of each row."""
    return ((rows.errors @ before.matrix) ** 2).sum(1)
