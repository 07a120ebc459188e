"""Additive codebooks: residual k-means, then joint code search and least squares in turn, then the group scales."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from codegemm.config import CodebookConfig
from codegemm.formats.bits import code_dtype
from codegemm.formats.codebook import CodebookWeight
from codegemm.quantize.kmeans import assign, kmeans
from codegemm.quantize.progress import Progress
from codegemm.quantize.search import Vectors, decode, encode

_SAMPLE_PER_CENTROID = 512
_MAX_SAMPLE = 1 << 18
_DRAWS_PER_VECTOR = 4
_KMEANS_ITERATIONS = 30
_ROUNDS = 12  # of search and least squares, each on vectors drawn afresh
_TRAIN_BEAM = 4
_FINAL_BEAM = 8
_RIDGE = 1e-3
_MAX_CROSS_PRODUCTS = 1 << 30  # bytes


def quantize(matrix: Vectors, config: CodebookConfig, seed: int, progress: Progress) -> CodebookWeight:
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
    groups = matrix.reshape(rows, -1, config.group_size(columns))
    level = _level(matrix)
    scales = _round(np.sqrt((groups.astype(np.float64) ** 2).mean(-1)) / level)
    vectors = _normalise(groups, scales * np.float32(level)).reshape(-1, config.v)
    # Drawn by their share of the squared error, so that fitting the sample minimises the error of W.
    weights = np.repeat(scales.ravel().astype(np.float64) ** 2, groups.shape[-1] // config.v)

    progress.total((_ROUNDS if config.m > 1 else 1) + 4)
    codebooks = _fit(vectors, weights, config, rng, progress)
    codebooks = _round(codebooks * np.float32(level)).astype(np.float32)
    share = 4 / len(vectors)
    codes = encode(
        vectors,
        codebooks / np.float32(level),
        _FINAL_BEAM,
        done=lambda count: progress.advance(share * count),
    )
    scales = _refit_scales(groups, decode(codes, codebooks).reshape(groups.shape), scales)
    return CodebookWeight(
        codes.astype(code_dtype(config.b)).reshape(rows, -1, config.m),
        codebooks.astype(np.float16),
        scales.astype(np.float16),
    )


def _level(matrix: Vectors) -> float:
    """The power of two that the codebooks take from W, so that scales and centroids both stay normal halves."""
    typical = float(np.sqrt((matrix.astype(np.float64) ** 2).mean()))
    if typical == 0 or 2.0**-10 <= typical <= 2.0**10:
        return 1.0
    return float(2.0 ** np.round(np.log2(typical) / 2))


def _round(values: npt.NDArray) -> Vectors:
    """Rounded to float16, as float32; ValueError where that overflows."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise ValueError(f"W: weights of magnitude {np.abs(values).max():.3g} do not fit float16 scales")
    return rounded.astype(np.float32)


def _normalise(groups: Vectors, scales: npt.NDArray) -> Vectors:
    """groups / scales; zero where a scale is zero."""
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    return groups * inverse[..., None]


def _fit(
    vectors: Vectors,
    weights: npt.NDArray,
    config: CodebookConfig,
    rng: np.random.Generator,
    progress: Progress,
) -> Vectors:
    """Codebooks float32 [m, 2**b, v] for the vectors, each counted `weights` times."""
    draw = _Sampler(vectors, weights, min(_MAX_SAMPLE, max(1 << 16, _SAMPLE_PER_CENTROID * config.centroids)), rng)
    residual = draw()
    books = []
    for _ in range(config.m):
        book = kmeans(residual, config.centroids, _KMEANS_ITERATIONS, rng)
        residual = residual - book[assign(residual, book)]
        books.append(book)
    codebooks = np.stack(books)
    progress.advance()
    if config.m == 1:
        return codebooks
    for _ in range(_ROUNDS):
        sample = draw()
        codes = encode(sample, codebooks, _TRAIN_BEAM)
        codebooks = least_squares(sample, codes, codebooks)
        progress.advance()
    return codebooks


class _Sampler:
    """Draws vectors, each with a probability proportional to its weight."""

    def __init__(self, vectors: Vectors, weights: npt.NDArray, count: int, rng: np.random.Generator) -> None:
        self._vectors, self._rng = vectors, rng
        # Of few vectors several draws each, so that those of small weight are not left out.
        self._count = min(count, _DRAWS_PER_VECTOR * len(vectors))
        self._cumulative = np.cumsum(weights)

    def __call__(self) -> Vectors:
        if not self._cumulative[-1] > 0:
            return self._vectors
        # One from each of `count` equal strata: vectors of equal weight are drawn equally often.
        strata = (np.arange(self._count) + self._rng.random(self._count)) / self._count
        at = strata * self._cumulative[-1]
        index = np.searchsorted(self._cumulative, at, side="right")
        return self._vectors[np.minimum(index, len(self._vectors) - 1)]


def least_squares(vectors: Vectors, codes: npt.NDArray, codebooks: Vectors) -> Vectors:
    """The codebooks that minimise |vectors - decode(codes)|^2, held near the present ones where nothing decides."""
    m, centroids, v = codebooks.shape
    size = m * centroids
    codes = codes.astype(np.intp)
    normal = np.zeros((size, size))
    for c in range(m):
        for d in range(m):
            together = np.bincount(codes[:, c] * centroids + codes[:, d], minlength=centroids**2)
            normal.reshape(m, centroids, m, centroids)[c, :, d] = together.reshape(centroids, centroids)
    right = np.stack(
        [
            np.concatenate([np.bincount(codes[:, c], column, minlength=centroids) for c in range(m)])
            for column in vectors.T.astype(np.float64)
        ],
        axis=1,
    )
    present = codebooks.reshape(size, v).astype(np.float64)
    ridge = _RIDGE * len(vectors) / centroids
    normal[np.diag_indices(size)] += ridge
    return np.linalg.solve(normal, right + ridge * present).reshape(m, centroids, v).astype(np.float32)


def _refit_scales(groups: Vectors, decoded: Vectors, scales: Vectors) -> Vectors:
    """The scale of each group that fits its codes best, where that is a positive half; else the one it had."""
    dot = np.einsum("rgk,rgk->rg", groups, decoded, dtype=np.float64, optimize=False)
    norm = np.einsum("rgk,rgk->rg", decoded, decoded, dtype=np.float64, optimize=False)
    best = np.divide(dot, norm, out=np.zeros_like(dot), where=norm > 0)
    with np.errstate(over="ignore"):
        rounded = best.astype(np.float16).astype(np.float32)
    return np.where((rounded > 0) & np.isfinite(rounded), rounded, scales)
