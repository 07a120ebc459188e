"""From a dense matrix to a quantised weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

from codegemm.formats.format import parse, spec_of
from codegemm.formats.transformed import USUAL, TransformedConfig
from codegemm.formats.weight import Weight
from codegemm.quantize.quantizers import Job, quantizer_for

if TYPE_CHECKING:
    from codegemm.calibration import Calibration
    from codegemm.quantize.arithmetic import Backend
    from codegemm.quantize.progress import Progress
    from codegemm.quantize.stopping import OnInterrupt


def configured(config: Any, rotate: bool = False, *, calibrated: bool = False) -> Any:
    """The configuration of a text, or itself, for `quantize`; ValueError where no quantiser makes such weights.

    calibrated: whether it has to heed a calibration.
    """
    config = parse(config)
    if rotate and isinstance(config, TransformedConfig):
        config = config if config.block else replace(config, block=USUAL)
    elif rotate:
        config = TransformedConfig(config, USUAL)
    quantizer = quantizer_for(config)
    if calibrated and not quantizer.calibrates(config):
        raise ValueError(f"config '{config}': takes no calibration")
    return config


def checked_seed(seed: Any) -> int:
    """A seed as a plain int; TypeError for what is no integer, ValueError for a negative one."""
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise TypeError(f"seed={seed!r}: must be an integer of at least 0")
    if seed < 0:
        raise ValueError(f"seed={seed!r}: must be at least 0")
    return int(seed)


def quantize(
    W: Any,
    config: Any,
    *,
    calibration: Calibration | None = None,
    rotate: bool = False,
    seed: int = 0,
    progress: bool | Callable[[str], Progress] | None = None,
    time_limit: float | None = None,
    on_interrupt: OnInterrupt = "raise",
    backend: Backend | None = None,
) -> Weight:
    """Quantise a dense matrix W [out_features, in_features] of finite floats.

    config: a configuration or its text. `m2v8g128`, or a CodebookConfig: additive codebooks by k-means, then joint code
        search and least squares, scales too; `e8p`: QuIP#'s 2-bit lattice between random Hadamard rotations;
        `qtip`, `qtip3`, `qtip4`: QTIP's trellis codes between such; `q2g128`: planes of signs (binary codes) by
        alternating least squares; or that of any registered format which has a
        quantiser.
    calibration: the layer's inputs. Then tr((W - W') H (W - W')^T) is made small instead of |W - W'|^2; to the diagonal
        of H = X^T X 0.01 of its mean is added, so that inputs that were always zero and fewer rows than in_features do
        no harm.
    rotate: quantise W R^T, R a randomised Hadamard rotation of the inputs by blocks, and give a TransformedWeight that
        rotates x: the matrix becomes as easy as a Gaussian one, whatever its tails. A text may say so, too
        (`m2v8g128+rotated`). `e8p` and `qtip` rotate anyhow.
    seed: the same seed gives the same weight on the same machine and backend.
    progress: show a progress bar on standard error; or what opens one by its title. None: where that is a terminal,
        after three seconds.
    time_limit: seconds after which codebooks are left as good as they are; only rows that have no codes yet are coded
        then, in the fastest way. `e8p` and `qtip` have nothing to leave out.
    on_interrupt: `return` makes Ctrl-C such an end, too (in the main thread; a second one raises KeyboardInterrupt).
    backend: what computes codebook weights: `numpy`; `torch` on the CPU; `cuda`, torch on the current GPU. None: the
        GPU for a torch tensor that is on one, torch on the CPU for large matrices where it is installed, else NumPy.
        `qtip` is compiled for the CPU, and takes these on a GPU and where there is no compiler.

    A matrix of fewer vectors than a codebook has centroids is stored as it is, but for rounding, and centroids repeat.
    Constant rows are rows like others; a row or group of zeros has the scale zero.

    The error of a row is in proportion to the row, however small or large its weights are. Scales times centroids, both
    float16, hold rows whose root mean squares are from about 4e-9 to 1e8, the largest at most 2**28 times the smallest;
    of a row's groups those that are smaller than that beside its largest become zero. `e8p` and `qtip` hold what
    float32 does. Planes of signs hold what float16 scales do: weights up to 65504, the largest at least about 6e-5;
    rows and groups that are smaller than that err more, or become zero.

    Raises ValueError for a matrix that is not finite, not 2-D, of a shape or of weights that the configuration can't
    hold, and for a configuration that has no quantiser; TypeError or ValueError for what the other arguments can't be.
    """
    from codegemm import arrays
    from codegemm.quantize.arithmetic import find
    from codegemm.quantize.matrix import as_matrix
    from codegemm.quantize.progress import opener
    from codegemm.quantize.stopping import Stop, check

    config = configured(config, rotate, calibrated=calibration is not None)
    seed = checked_seed(seed)
    check(time_limit, on_interrupt)
    named = None if backend is None else find(backend, 0)
    matrix = as_matrix(W)
    spec_of(matrix.shape, config)
    if calibration is not None:
        _check_calibration(calibration, matrix.shape[1])
    usual: Backend | None = "cuda" if arrays.is_torch(W) and W.is_cuda else None
    arithmetic = named or find(usual, matrix.size)
    gram = None if calibration is None else calibration.H
    with Stop(time_limit, on_interrupt) as stop:
        job = Job(seed, gram, opener(progress), arithmetic, stop)
        return quantizer_for(config).quantize(matrix, config, job)


def _check_calibration(calibration: Any, in_features: int) -> None:
    """TypeError or ValueError unless it is a Calibration of so many inputs that has seen some."""
    from codegemm.calibration import Calibration

    if not isinstance(calibration, Calibration):
        raise TypeError(f"calibration: {type(calibration).__name__}, must be a codegemm.Calibration")
    if calibration.in_features != in_features:
        raise ValueError(f"calibration: in_features={calibration.in_features}, W has {in_features}")
    if not calibration.H.any():
        raise ValueError(f"calibration: all inputs of its {calibration.rows} rows are zero")
