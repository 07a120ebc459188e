"""QTIP: rows made one size, random signs and Hadamard rotations on both sides, then the nearest path through the
trellis for every tile, and sizes of rows by least squares."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codegemm.formats import trellis
from codegemm.formats.incoherent import BITS
from codegemm.formats.qtip import QtipWeight, check_shape
from codegemm.quantize.arithmetic import Arithmetic
from codegemm.quantize.hessian import Hessian, Tie, rotated
from codegemm.quantize.incoherence import Sides, held
from codegemm.quantize.progress import Progress
from codegemm.quantize.search import Vectors
from codegemm.quantize.viterbi import Search, States

# float16 [3, 512, 2]: of 2, 3 and 4 bits, for weights of unit variance; made by `python -m benchmarks.quantize.tables`.
TABLES = Path(__file__).with_name("qtip_tables.npy")
_SPAN = 128  # columns whose errors reach those behind them together, by one product


@cache
def table(bits: int) -> npt.NDArray[np.float16]:
    """The pairs of weights [512, 2] of 2, 3 or 4 bits."""
    return np.load(TABLES)[BITS.index(bits)]


def quantize(
    matrix: Vectors, bits: int, seed: int, H: npt.NDArray[np.float64] | None, ops: Arithmetic, progress: Progress
) -> QtipWeight:
    """A QtipWeight near matrix [M, K], multiples of 32 with a Hadamard matrix each.

    H: X^T X of a calibration, [K, K], or None. With it errors are fed back, from each 16 columns to all behind them,
    and are weighed by H and its damping. Where that isn't better, the weight is as without.
    """
    check_shape(*matrix.shape)
    sides = Sides.of(matrix, np.random.default_rng(seed))
    halfway = sides.halfway(matrix)
    core = sides.core(halfway)
    rms = np.sqrt(np.square(core, dtype=np.float64).mean())
    core /= np.float32(rms or 1)
    search = Search(table(bits), bits, ops)
    tie = None if H is None else Hessian.of(rotated(H, sides.right), trellis.TILE).before
    progress.total((1 if tie is None else 2) * core.size // trellis.TILE**2)

    def fitted(states: States) -> tuple[npt.NDArray[np.float64], float]:
        """The sizes of rows [M] that are best for these states, and the error that they leave."""
        found = sides.outward(trellis.untile(search.pairs[states], core.shape))
        wanted, found = (x if tie is None else x @ tie.matrix for x in (halfway, found))
        sizes = _dots(wanted, found) / np.maximum(_dots(found, found), np.finfo(np.float32).tiny)
        gaps = wanted - sizes[:, None].astype(np.float32) * found
        return sizes, float(_dots(gaps, gaps) @ sides.sizes**2)

    states = search(trellis.tile(core), progress.advance)
    sizes, error = fitted(states)
    if tie is not None:
        fed_back = feed_back(core, tie, search, progress)
        others, less = fitted(fed_back)
        if less < error:
            states, sizes = fed_back, others
    codes = trellis.pack(trellis.words(states, bits), core.shape)
    sv = held(sides.sv, sizes * sides.sizes, np.float32)
    return QtipWeight(codes, table(bits), sides.su.astype(np.float16), sv)


def feed_back(core: Vectors, tie: Tie, search: Search, progress: Progress) -> States:
    """States [tiles, 128] of a core [M, K], those of each 16 columns chosen for what the errors of columns before them
    leave to mend (as `sweep.choose`)."""
    rows, columns = core.shape
    states = np.empty((rows // trellis.TILE, columns // trellis.TILE, trellis.STEPS), np.uint16)
    pull = np.zeros_like(core)
    for first in range(0, columns, _SPAN):
        end = min(first + _SPAN, columns)
        errors = np.empty((rows, end - first), np.float32)
        for begin in range(first, end, trellis.TILE):
            here, j = slice(begin, begin + trellis.TILE), begin // trellis.TILE
            target = core[:, here] + pull[:, here] @ tie.inverse[j]
            states[:, j] = search(trellis.tile(target), progress.advance)
            error = core[:, here] - trellis.untile(search.pairs[states[:, j]], target.shape)
            pull[:, here.stop : end] += error @ tie.matrix[here, here.stop : end]
            errors[:, begin - first : here.stop - first] = error
        pull[:, end:] += errors @ tie.matrix[first:end, end:]
    return states.reshape(-1, trellis.STEPS)


def _dots(x: Vectors, y: Vectors) -> npt.NDArray[np.float64]:
    """Of each row of x with that of y."""
    return np.einsum("mk,mk->m", x, y, dtype=np.float64)
