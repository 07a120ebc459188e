"""From a dense matrix to a quantised weight."""

from __future__ import annotations

from typing import Any, Literal, overload

from codegemm.config import CodebookConfig
from codegemm.formats import e8p
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.e8p import E8PWeight
from codegemm.formats.weight import Weight

E8P = "e8p"


def check_config(config: str, shape: tuple[int, int]) -> None:
    """ValueError unless `config` is `e8p` or a CodebookConfig's text and a matrix of this shape can be stored so."""
    if config == E8P:
        e8p.check_shape(*shape)
    else:
        CodebookConfig.parse(config).check_shape(*shape)


@overload
def quantize(W: Any, config: Literal["e8p"], *, seed: int = ..., progress: bool = ...) -> E8PWeight: ...
@overload
def quantize(W: Any, config: CodebookConfig, *, seed: int = ..., progress: bool = ...) -> CodebookWeight: ...
@overload
def quantize(W: Any, config: str, *, seed: int = ..., progress: bool = ...) -> Weight: ...
def quantize(W: Any, config: CodebookConfig | str, *, seed: int = 0, progress: bool = False) -> Weight:
    """Quantise a dense matrix W [out_features, in_features] of finite floats, without calibration data.

    config: a CodebookConfig or its text (`m2v8g128`): additive codebooks by residual k-means, then joint code search
        and least squares; or `e8p`: QuIP#'s 2-bit lattice between random Hadamard rotations.
    seed: the same seed gives the same weight on the same machine.
    progress: show a progress bar on standard error.

    Raises ValueError for a matrix that is not finite, not 2-D or of a shape that the configuration can't hold.
    """
    from codegemm.quantize import additive, lattice
    from codegemm.quantize.matrix import as_matrix
    from codegemm.quantize.progress import Progress

    matrix = as_matrix(W)
    if isinstance(config, str) and config != E8P:
        config = CodebookConfig.parse(config)
    if not isinstance(config, (str, CodebookConfig)):
        raise TypeError(f"config {config!r}: must be a CodebookConfig, its text or 'e8p'")
    with Progress(f"quantizing to {config}", progress) as bar:
        if isinstance(config, CodebookConfig):
            return additive.quantize(matrix, config, seed, bar)
        return lattice.quantize(matrix, seed, bar)
