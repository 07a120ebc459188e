"""From a dense matrix to a quantised weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from codegemm.config import CodebookConfig
from codegemm.formats import e8p
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.e8p import E8PWeight
from codegemm.formats.weight import Weight

if TYPE_CHECKING:
    from codegemm.calibration import Calibration
    from codegemm.formats.extended import ExtendedWeight
    from codegemm.quantize.arithmetic import Backend
    from codegemm.quantize.stopping import OnInterrupt

E8P = "e8p"
ROTATED = "+rotated"  # behind a configuration's text
_SIGNS = 1  # makes the signs' random numbers others than those of codebooks


def check_config(config: str, shape: tuple[int, int]) -> None:
    """ValueError unless `config` is a text that `quantize` takes and a matrix of this shape can be stored so."""
    if config == E8P:
        e8p.check_shape(*shape)
    else:
        _parse(config)[0].check_shape(*shape)


@overload
def quantize(
    W: Any,
    config: Literal["e8p"],
    *,
    seed: int = ...,
    progress: bool = ...,
    time_limit: float | None = ...,
    on_interrupt: OnInterrupt = ...,
    backend: Backend | None = ...,
) -> E8PWeight: ...
@overload
def quantize(
    W: Any,
    config: CodebookConfig,
    *,
    calibration: Calibration | None = ...,
    rotate: bool = ...,
    seed: int = ...,
    progress: bool = ...,
    time_limit: float | None = ...,
    on_interrupt: OnInterrupt = ...,
    backend: Backend | None = ...,
) -> CodebookWeight | ExtendedWeight: ...
@overload
def quantize(
    W: Any,
    config: str,
    *,
    calibration: Calibration | None = ...,
    rotate: bool = ...,
    seed: int = ...,
    progress: bool = ...,
    time_limit: float | None = ...,
    on_interrupt: OnInterrupt = ...,
    backend: Backend | None = ...,
) -> Weight: ...
def quantize(
    W: Any,
    config: CodebookConfig | str,
    *,
    calibration: Calibration | None = None,
    rotate: bool = False,
    seed: int = 0,
    progress: bool = False,
    time_limit: float | None = None,
    on_interrupt: OnInterrupt = "raise",
    backend: Backend | None = None,
) -> Weight:
    """Quantise a dense matrix W [out_features, in_features] of finite floats.

    config: a CodebookConfig or its text (`m2v8g128`): additive codebooks by k-means, then joint code search and least
        squares in turn, scales too; or `e8p`: QuIP#'s 2-bit lattice between random Hadamard rotations.
    calibration: the layer's inputs. Then tr((W - W') H (W - W')^T) is made small instead of |W - W'|^2; to the diagonal
        of H = X^T X 0.01 of its mean is added, so that inputs that were always zero and fewer rows than in_features do
        no harm. Not for `e8p`.
    rotate: quantise W R^T, R a randomised Hadamard rotation of the inputs by blocks, and give an ExtendedWeight that
        rotates x: the matrix becomes as easy as a Gaussian one, whatever its tails. A text may say so, too
        (`m2v8g128+rotated`). `e8p` rotates anyhow.
    seed: the same seed gives the same weight on the same machine and backend.
    progress: show a progress bar on standard error.
    time_limit: seconds after which codebooks are left as good as they are; only rows that have no codes yet are coded
        then, in the fastest way. `e8p` has nothing to leave out.
    on_interrupt: `return` makes Ctrl-C such an end, too (in the main thread; a second one raises KeyboardInterrupt).
    backend: what computes codebook weights: `numpy`; `torch` on the CPU; `cuda`, torch on the current GPU. None: the
        GPU for a torch tensor that is on one, torch on the CPU for large matrices where it is installed, else NumPy.

    A matrix of fewer vectors than a codebook has centroids is stored as it is, but for rounding, and centroids repeat.
    Constant rows are rows like others; a row or group of zeros has the scale zero.

    Raises ValueError for a matrix that is not finite, not 2-D or of a shape that the configuration can't hold.
    """
    from codegemm import arrays
    from codegemm.formats.extended import ExtendedWeight
    from codegemm.formats.hadamard import default_block, rotate_blocks
    from codegemm.quantize import additive, calibrated, lattice
    from codegemm.quantize.arithmetic import find
    from codegemm.quantize.hessian import gram_for
    from codegemm.quantize.matrix import as_matrix
    from codegemm.quantize.progress import Progress
    from codegemm.quantize.stopping import Stop

    matrix = as_matrix(W)
    if isinstance(config, str) and config != E8P:
        config, rotated = _parse(config)
        rotate |= rotated
    if not isinstance(config, (str, CodebookConfig)):
        raise TypeError(f"config {config!r}: must be a CodebookConfig, its text or 'e8p'")
    if config == E8P and (calibration is not None or rotate):
        raise ValueError("config 'e8p': takes no calibration, and rotates without being told")
    if calibration is not None:
        _check_calibration(calibration, matrix.shape[1])
    if backend is None and arrays.is_torch(W) and W.is_cuda:
        backend = "cuda"
    arithmetic = find(backend, matrix.size)
    with Stop(time_limit, on_interrupt) as stop:
        if not isinstance(config, CodebookConfig):
            with Progress(f"quantizing to {config}", progress) as bar:
                return lattice.quantize(matrix, seed, bar)
        signs, block = None, 0
        if rotate:
            block = default_block(matrix.shape[1])
            signs = np.random.default_rng([seed, _SIGNS]).choice(np.array([-1, 1], np.int8), matrix.shape[1])
            matrix = rotate_blocks(matrix, signs, block)
        with Progress(f"quantizing to {config}", progress) as bar:
            weight = additive.quantize(matrix, config, seed, arithmetic, stop, bar)
        if calibration is not None:
            with Progress("calibrating", progress) as bar:
                gram = gram_for(calibration, signs, block)
                weight = calibrated.refine(matrix, weight, gram, arithmetic, stop, bar)
        return weight if signs is None else ExtendedWeight(weight, signs=signs, block=block)


def _parse(text: str) -> tuple[CodebookConfig, bool]:
    """A configuration and whether its text says that the inputs are rotated."""
    plain = text.removesuffix(ROTATED)
    if plain == E8P:
        raise ValueError(f"config {text!r}: e8p rotates without being told")
    return CodebookConfig.parse(plain), plain != text


def _check_calibration(calibration: Any, in_features: int) -> None:
    """TypeError or ValueError unless it is a Calibration of so many inputs that has seen some."""
    from codegemm.calibration import Calibration

    if not isinstance(calibration, Calibration):
        raise TypeError(f"calibration: {type(calibration).__name__}, must be a codegemm.Calibration")
    if calibration.in_features != in_features:
        raise ValueError(f"calibration: in_features={calibration.in_features}, W has {in_features}")
    if not calibration.H.any():
        raise ValueError(f"calibration: all inputs of its {calibration.rows} rows are zero")
