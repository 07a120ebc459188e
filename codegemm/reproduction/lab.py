"""Where experiments are made: on this machine's engine, or by the cost model of a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from codegemm.comparison import runner
from codegemm.engines.cuda.gpu import KNOWN, Gpu, gpu_of
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel
from codegemm.measuring import conditions
from codegemm.measuring.accuracy import inputs
from codegemm.measuring.stopwatch import Candidate


@dataclass(frozen=True)
class Lab:
    """settings: of measurements; their engine is `cuda` where a GPU's times are predicted. predicts: a GPU's name."""

    settings: runner.Settings
    predicts: str = ""

    @property
    def on_gpu(self) -> bool:
        """Whether it is about the CUDA kernels."""
        return self.settings.engine == "cuda"

    @property
    def gpu(self) -> Gpu:
        """Whose kernels they are."""
        return KNOWN[self.predicts] if self.predicts else gpu_of(self.settings.device)

    def seconds(self, kernel: Kernel, weight: Weight) -> float:
        """The median of a product with one row of x, measured by itself."""
        dtype, device = self.settings.dtype, self.settings.device
        x = inputs(weight.shape[1], 1, dtype)
        with conditions.path(self.settings.paths[0]):
            candidate = Candidate(kernel, weight.to(device), [1], np.dtype(dtype))
            return candidate.measure(x, self.settings.seconds)[1].median
