"""From a dense matrix to a quantised weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from codegemm.config import CodebookConfig
from codegemm.formats import e8p
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.e8p import E8PWeight
from codegemm.formats.weight import Weight

if TYPE_CHECKING:
    from codegemm.quantize.arithmetic import Backend
    from codegemm.quantize.stopping import OnInterrupt

E8P = "e8p"


def check_config(config: str, shape: tuple[int, int]) -> None:
    """ValueError unless `config` is `e8p` or a CodebookConfig's text and a matrix of this shape can be stored so."""
    if config == E8P:
        e8p.check_shape(*shape)
    else:
        CodebookConfig.parse(config).check_shape(*shape)


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
    seed: int = ...,
    progress: bool = ...,
    time_limit: float | None = ...,
    on_interrupt: OnInterrupt = ...,
    backend: Backend | None = ...,
) -> CodebookWeight: ...
@overload
def quantize(
    W: Any,
    config: str,
    *,
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
    seed: int = 0,
    progress: bool = False,
    time_limit: float | None = None,
    on_interrupt: OnInterrupt = "raise",
    backend: Backend | None = None,
) -> Weight:
    """Quantise a dense matrix W [out_features, in_features] of finite floats, without calibration data.

    config: a CodebookConfig or its text (`m2v8g128`): additive codebooks by k-means, then joint code search and least
        squares in turn, scales too; or `e8p`: QuIP#'s 2-bit lattice between random Hadamard rotations.
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
    from codegemm.quantize import additive, lattice
    from codegemm.quantize.arithmetic import find
    from codegemm.quantize.matrix import as_matrix
    from codegemm.quantize.progress import Progress
    from codegemm.quantize.stopping import Stop

    matrix = as_matrix(W)
    if isinstance(config, str) and config != E8P:
        config = CodebookConfig.parse(config)
    if not isinstance(config, (str, CodebookConfig)):
        raise TypeError(f"config {config!r}: must be a CodebookConfig, its text or 'e8p'")
    if backend is None and arrays.is_torch(W) and W.is_cuda:
        backend = "cuda"
    arithmetic = find(backend, matrix.size)
    with Stop(time_limit, on_interrupt) as stop, Progress(f"quantizing to {config}", progress) as bar:
        if isinstance(config, CodebookConfig):
            return additive.quantize(matrix, config, seed, arithmetic, stop, bar)
        return lattice.quantize(matrix, seed, bar)
