"""One matrix of a block: what it is to become, and how well that went."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.formats.format import parse
from codegemm.formats.weight import Weight
from codegemm.hf.blockwise.moments import Moments, are_enough
from codegemm.hf.blockwise.targets import corrected, relative_error
from codegemm.locks import ForkSafeLock
from codegemm.quantize import quantize
from codegemm.quantize.quantizers import quantizer_for

_SHARED = ForkSafeLock()  # of matrices with the same inputs that are in work together, the first computes for all


@dataclass(frozen=True)
class Layer:
    """A quantised matrix. weight_error: |W - W'|^2 / |W|^2. output_error: |X (V - W')^T|^2 / |X V^T|^2, of the text's
    rows X as the quantised model has them and V, W corrected for them; None where no rows or too few were seen.

    rows: of the text, that were seen; capped: of them, that were so long that they count less.
    """

    name: str
    config: str
    shape: tuple[int, int]
    bits_per_weight: float
    weight_error: float
    output_error: float | None
    rows: int
    capped: int
    seconds: float

    @property
    def calibrated(self) -> bool:
        """Whether it was quantised for the text."""
        return self.output_error is not None


@dataclass(frozen=True)
class Work:
    """What `done` needs. moments: of its inputs, None without a text. correct: whether W is corrected for them."""

    name: str
    matrix: npt.NDArray[np.float32]
    config: str
    moments: Moments | None
    correct: bool
    seed: int
    time_limit: float | None
    backend: Any

    def done(self) -> tuple[Weight, Layer]:
        """The weight of W [M, K] and how well it went; ValueError, which names it, where it can't be."""
        begin = time.perf_counter()
        target, calibration = self.matrix, None
        try:
            moments = self.moments if self._is_known() else None
            if moments is not None:
                with _SHARED:
                    changes = (moments.correction, moments.addition) if self.correct else None
                    calibration = moments.calibration
                if changes is not None:
                    target = corrected(self.matrix, *changes)
            weight = quantize(
                target, self.config, calibration=calibration, seed=self.seed, time_limit=self.time_limit,
                progress=False, backend=self.backend,
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        dense = weight.dequantize(np.float32)
        return weight, Layer(
            self.name, self.config, weight.shape, weight.bits_per_weight,
            relative_error(self.matrix, dense),
            None if moments is None else relative_error(target, dense, moments.own.numpy()),
            0 if self.moments is None else self.moments.rows,
            0 if self.moments is None else self.moments.capped,
            time.perf_counter() - begin,
        )  # fmt: skip

    def _is_known(self) -> bool:
        """Whether rows enough were seen, of anything but zeros, by a format that can be fitted to them."""
        moments, config = self.moments, parse(self.config)
        if not quantizer_for(config).calibrates(config):
            return False
        return moments is not None and are_enough(moments.rows, self.matrix.shape[1]) and bool(moments.own.any())
