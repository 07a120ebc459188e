"""What makes weights of a format from dense matrices: the package's own quantisers, and those of third parties."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codegemm.formats.codebook_config import CodebookConfig
from codegemm.formats.e8p import E8PConfig, E8PWeight
from codegemm.formats.format import check_registered, format_of
from codegemm.formats.qtip import QtipConfig, QtipWeight
from codegemm.formats.rotation import Rotation, default_block
from codegemm.formats.transformed import USUAL, TransformedConfig, TransformedWeight
from codegemm.formats.weight import Weight
from codegemm.plugins import Registry

if TYPE_CHECKING:
    from codegemm.formats.codebook import CodebookWeight
    from codegemm.quantize.arithmetic import Arithmetic
    from codegemm.quantize.progress import Progress
    from codegemm.quantize.stopping import Stop

ENTRY_POINT_GROUP = "codegemm.quantizers"
MAX_PLANES = 8  # whose 128 sums are tried one after the other
_SIGNS = 1  # makes the signs' random numbers others than those of codebooks


@dataclass(frozen=True)
class Job:
    """How a matrix is to be quantised.

    seed: the same gives the same weight. gram: H = X^T X of the inputs, float64 [K, K], where there is a calibration.
    progress: opens a bar with a title. arithmetic, stop: what computes, and when to end with what there is.
    """

    seed: int
    gram: npt.NDArray[np.float64] | None
    progress: Callable[[str], Progress]
    arithmetic: Arithmetic
    stop: Stop


class Quantizer(ABC):
    """A format's quantiser. Subclass it and pass an instance to `codegemm.register_quantizer`.

    format: the name of its format. rotates: whether it rotates a matrix without being told. version: weights that are
    kept in the cache go by it; raise it when what is made changes.
    """

    format: str
    rotates: bool = False
    version: str = "2"

    def refuses(self, config: Any) -> str | None:
        """Why it makes no weights of this configuration of its format, or None."""
        return None

    def calibrates(self, config: Any) -> bool:
        """Whether it heeds a calibration."""
        return False

    def identity(self, config: Any) -> str:
        """What a cache's key says of it."""
        return f"{type(self).__module__}.{type(self).__qualname__} {self.version}"

    @abstractmethod
    def quantize(self, matrix: npt.NDArray[np.float32], config: Any, job: Job) -> Weight:
        """The weight of matrix [M, K], which is finite and of a shape that the configuration can store.

        job: `seed`; `gram`, H [K, K] of a calibration or None; `progress(title)`, a bar to be used in a `with`.
        """


def register_quantizer(quantizer: Quantizer, *, replace: bool = False) -> Quantizer:
    """Let `codegemm.quantize` make weights of a registered format; returns it.

    TypeError unless it is an instance of a subclass of Quantizer, ValueError where there is no such format or where it
    has a quantiser.
    """
    if not isinstance(quantizer, Quantizer):
        raise TypeError(f"quantizer {quantizer!r}: must be an instance of a subclass of codegemm.Quantizer")
    check_registered(getattr(quantizer, "format", None))
    _quantizers.add(quantizer.format, quantizer, replace)
    return quantizer


def unregister_quantizer(format: str) -> None:
    """Remove a format's quantiser; KeyError if there is none."""
    _quantizers.remove(format)


def quantizer_for(config: Any) -> Quantizer:
    """The quantiser of a configuration; ValueError where there is none, with the reason."""
    name = format_of(config).name
    quantizer = next((each for each in _quantizers.all() if each.format == name), None)
    reason = f"the format {name} has no quantizer" if quantizer is None else quantizer.refuses(config)
    if quantizer is None or reason:
        raise ValueError(f"config '{config}': {reason}")
    return quantizer


class CodebookQuantizer(Quantizer):
    """Additive codebooks by k-means, then joint code search and least squares in turn."""

    format, version = "codebook", "3"

    def calibrates(self, config: CodebookConfig) -> bool:
        return True

    def quantize(self, matrix: npt.NDArray[np.float32], config: CodebookConfig, job: Job) -> CodebookWeight:
        from codegemm.quantize import additive, calibrated

        if config.signs:
            return _planes(matrix, config, 1, job)
        with job.progress(f"quantizing to {config}") as bar:
            weight = additive.quantize(matrix, config, job.seed, job.arithmetic, job.stop, bar)
        if job.gram is not None:
            with job.progress("calibrating") as bar:
                weight = calibrated.refine(matrix, weight, job.gram, job.arithmetic, job.stop, bar)
        return weight


class E8PQuantizer(Quantizer):
    """The nearest points of the lattice, between random rotations."""

    format, rotates, version = "e8p", True, "4"

    def calibrates(self, config: E8PConfig) -> bool:
        return True

    def refuses(self, config: E8PConfig) -> str | None:
        return None if config.bits == 2 else "there is no quantizer for its residual; e8p, of 2 bits, has one"

    def quantize(self, matrix: npt.NDArray[np.float32], config: E8PConfig, job: Job) -> E8PWeight:
        from codegemm.quantize import lattice

        with job.progress(f"quantizing to {config}") as bar:
            return lattice.quantize(matrix, job.seed, job.gram, bar)


class QtipQuantizer(Quantizer):
    """The nearest paths through the trellis, between random rotations."""

    format, rotates, version = "qtip", True, "1"

    def calibrates(self, config: QtipConfig) -> bool:
        return True

    def quantize(self, matrix: npt.NDArray[np.float32], config: QtipConfig, job: Job) -> QtipWeight:
        from codegemm.quantize import qtip

        with job.progress(f"quantizing to {config}") as bar:
            return qtip.quantize(matrix, config.bits, job.seed, job.gram, job.arithmetic, bar)


class TransformedQuantizer(Quantizer):
    """The core's quantiser, of a matrix in rotated coordinates; several planes of signs together."""

    format = "transformed"

    def calibrates(self, config: TransformedConfig) -> bool:
        return quantizer_for(config.core).calibrates(config.core)

    def identity(self, config: TransformedConfig) -> str:
        return f"{super().identity(config)}, {quantizer_for(config.core).identity(config.core)}"

    def refuses(self, config: TransformedConfig) -> str | None:
        several = config.terms > 1
        if config.offsets or config.ordered or (several and not config.of_signs):
            return "no quantizer looks for offsets, terms and orders; conversions of other formats bring them"
        if config.terms > MAX_PLANES:
            return f"there are quantizers for up to {MAX_PLANES} planes"
        if not config.block and not several:
            return "there is nothing around its core"
        if quantizer_for(config.core).rotates:
            return f"{config.core} rotates without being told"
        return None

    def quantize(self, matrix: npt.NDArray[np.float32], config: TransformedConfig, job: Job) -> TransformedWeight:
        from codegemm.quantize.hessian import rotated

        signs = block = None
        if config.block:
            columns = matrix.shape[1]
            block = default_block(columns) if config.block == USUAL else config.block
            signs = np.random.default_rng([job.seed, _SIGNS]).choice(np.array([-1, 1], np.int8), columns)
            rotation = Rotation(signs, block)
            matrix = rotation.rotate(matrix)
            if job.gram is not None:
                job = replace(job, gram=rotated(job.gram, rotation))
        if config.terms > 1:
            core: Weight = _planes(matrix, config.core, config.terms, job)
        else:
            core = quantizer_for(config.core).quantize(matrix, config.core, job)
        return TransformedWeight(core, signs=signs, block=block, terms=config.terms)


def _planes(matrix: npt.NDArray[np.float32], config: CodebookConfig, count: int, job: Job) -> CodebookWeight:
    """So many planes of signs, as the terms of a core."""
    from codegemm.quantize import binary

    with job.progress(f"quantizing to {config.planes(count)}") as bar:
        return binary.quantize(matrix, config, count, job.gram, job.arithmetic, job.stop, bar)


_quantizers: Registry[Quantizer] = Registry("quantizer of the format", ENTRY_POINT_GROUP, register_quantizer)
for own in (CodebookQuantizer, E8PQuantizer, QtipQuantizer, TransformedQuantizer):
    register_quantizer(own())
