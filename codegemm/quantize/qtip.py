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
from codegemm.quantize.hessian import Hessian, rotated
from codegemm.quantize.incoherence import Sides, feed_back, held
from codegemm.quantize.progress import Progress
from codegemm.quantize.search import Vectors
from codegemm.quantize.viterbi import Search, States

# float16 [3, 512, 2]: of 2, 3 and 4 bits, for weights of unit variance; made by `python -m benchmarks.quantize.tables`.
TABLES = Path(__file__).with_name("qtip_tables.npy")


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

    def nearest(columns: Vectors) -> tuple[States, Vectors]:
        found = search(trellis.tile(columns), progress.advance)
        return found, trellis.untile(search.pairs.take(found, axis=0), columns.shape)

    states, found = nearest(core)
    sizes, error = sides.fitted(halfway, found, tie)
    if tie is not None:
        fed_back = np.stack(feed_back(core, tie, trellis.TILE, nearest), 1).reshape(-1, trellis.STEPS)
        others, less = sides.fitted(halfway, trellis.untile(search.pairs.take(fed_back, axis=0), core.shape), tie)
        if less < error:
            states, sizes = fed_back, others
    codes = trellis.pack(trellis.words(states, bits), core.shape)
    sv = held(sides.sv, sizes * sides.sizes, np.float32)
    return QtipWeight(codes, table(bits), sides.su.astype(np.float16), sv)
