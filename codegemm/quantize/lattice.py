"""E8P: rows made one size, random signs and Hadamard rotations on both sides, then the nearest lattice point, the scale
by search, and for a calibration by least squares."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from codegemm.formats import e8p_codebook
from codegemm.formats.e8p import E8PWeight, check_shape
from codegemm.quantize.arithmetic import Arithmetic
from codegemm.quantize.hessian import Hessian, rotated
from codegemm.quantize.incoherence import Sides, feed_back, held
from codegemm.quantize.progress import Progress
from codegemm.quantize.search import Vectors

_BLOCK = 1024  # vectors at a time: their scores stay in a core's caches
_SEARCH_SAMPLE = 1 << 12  # vectors on which a scale is tried
# Scales tried, as the root mean square of the rotated weights in units of the grid, coarse and then fine.
_RMS = np.linspace(0.85, 1.15, 11)
# By how much a core is made smaller that errors are fed back to, which must not be too large for the grid.
_ROOM = 1.1


def quantize(matrix: Vectors, seed: int, H: npt.NDArray[np.float64] | None, progress: Progress) -> E8PWeight:
    """A 2-bit E8PWeight near matrix [M, K]; M a multiple of 16 and K of 64, both with a Hadamard matrix.

    H: X^T X of a calibration, [K, K], or None. With it errors are fed back, from each 8 columns to all behind them, and
    rows get the sizes that are best by H and its damping. Where that isn't better, codes are as without.
    """
    check_shape(*matrix.shape)
    rng = np.random.default_rng(seed)
    sides = Sides.of(matrix, rng)
    halfway = sides.halfway(matrix)
    core = sides.core(halfway)
    vectors = core.reshape(-1, e8p_codebook.DIM)

    blocks = -(-len(vectors) // _BLOCK)
    groups = 0 if H is None else core.shape[1] // e8p_codebook.DIM * -(-len(core) // _BLOCK)
    progress.total(2 * len(_RMS) + 1 + blocks + groups)
    scale = _search_scale(vectors, rng, progress)
    codes = nearest((vectors / np.float32(scale or 1)).astype(np.float32), progress).reshape(len(core), -1)
    sizes = np.full(len(core), scale)
    if H is not None:
        codes, sizes = _fed_back(sides, halfway, core / np.float32(scale or 1), codes, H, progress)
    sv = held(sides.sv, sides.sizes * sizes, np.float16, np.float32)
    return E8PWeight(e8p_codebook.pack(codes), sides.su.astype(np.float16), sv)


def _fed_back(
    sides: Sides,
    halfway: Vectors,
    core: Vectors,
    codes: npt.NDArray[np.uint16],
    H: npt.NDArray[np.float64],
    progress: Progress,
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float64]]:
    """The codes [M, K/8] of a core [M, K] in units of the grid that leave the least error by H, and the sizes of rows
    [M] for them. codes: those of the nearest points."""
    grid = e8p_codebook.grid().astype(np.float32)
    tie = Hessian.of(rotated(H, sides.right), e8p_codebook.DIM).before

    def closest(columns: Vectors) -> tuple[npt.NDArray[np.uint16], Vectors]:
        found = nearest(columns, progress)
        return found, grid.take(found, axis=0)

    sizes, error = sides.fitted(halfway, grid.take(codes, axis=0).reshape(core.shape), tie)
    others = np.stack(feed_back(core / np.float32(_ROOM), tie, e8p_codebook.DIM, closest), 1)
    other_sizes, less = sides.fitted(halfway, grid.take(others, axis=0).reshape(core.shape), tie)
    return (others, other_sizes) if less < error else (codes, sizes)


def nearest(vectors: npt.NDArray[np.float32], progress: Progress | None = None) -> npt.NDArray[np.uint16]:
    """The code of the nearest of the 65,536 grid points for each vector [n, 8]."""
    codes = np.empty(len(vectors), np.uint16)

    def work(begin: int) -> None:
        codes[begin : begin + _BLOCK] = _nearest_block(vectors[begin : begin + _BLOCK])
        if progress:
            progress.advance()

    Arithmetic().map(work, range(0, len(vectors), _BLOCK))
    return codes


def _search_scale(vectors: npt.NDArray[np.float32], rng: np.random.Generator, progress: Progress) -> float:
    """The scale of the grid with the least squared error on a sample; 0 for a zero matrix."""
    rms = float(np.sqrt((vectors.astype(np.float64) ** 2).mean()))
    if rms == 0:
        return 0.0
    sample = vectors[rng.choice(len(vectors), min(len(vectors), _SEARCH_SAMPLE), replace=False)] / np.float32(rms)
    grid = e8p_codebook.grid().astype(np.float32)

    def error(size: float) -> float:
        progress.advance()
        return float(
            ((sample - grid[nearest(sample * np.float32(size))] / np.float32(size)) ** 2).sum(dtype=np.float64)
        )

    best = min(_RMS, key=error)
    step = (_RMS[1] - _RMS[0]) / 2
    best = min(np.linspace(best - step, best + step, len(_RMS)), key=error)
    return rms / best


def _nearest_block(block: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Each vector has two candidates, one for each shift of +-1/4: the better wins."""
    best_gap = np.full(len(block), np.inf, np.float32)
    codes = np.zeros(len(block), np.uint16)
    for odd, shift in ((0, 0.25), (1, -0.25)):
        index, signs, gap = _nearest_even(block - np.float32(shift))
        better = gap < best_gap
        best_gap[better] = gap[better]
        codes[better] = (index << 8 | signs ^ odd)[better]
    return codes


def _nearest_even(
    x: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The nearest base vector after an even number of sign flips: its index, the flips as bits, the squared distance.

    Flipping every coordinate to x's sign is best; where that is an odd number of flips, the coordinate that costs
    least keeps the wrong sign.
    """
    base = e8p_codebook.abs_vectors()
    size, magnitude = np.abs(base), np.abs(x)
    odd = ((x < 0).sum(1) & 1)[:, None] != (base[:, 7] < 0)
    cheapest = magnitude[:, :1] * size[:, 0]
    for i in range(1, e8p_codebook.DIM):
        np.minimum(cheapest, magnitude[:, i : i + 1] * size[:, i], out=cheapest)
    score = magnitude @ size.T - (size**2).sum(1) / 2 - np.where(odd, 2 * cheapest, 0)
    index = score.argmax(1)
    rows = np.arange(len(x))
    flips = (x < 0) != (base.take(index, axis=0) < 0)
    wrong = (magnitude * size.take(index, axis=0)).argmin(1)
    flips[rows, wrong] ^= odd[rows, index]
    signs = (flips << np.array(e8p_codebook.SIGN_BIT)).sum(1)
    gap = (magnitude**2).sum(1) - 2 * score[rows, index]
    return index, signs, gap
