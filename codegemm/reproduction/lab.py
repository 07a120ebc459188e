"""Where experiments are made: on this machine's engine, or by the cost model of a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codegemm.comparison import runner
from codegemm.engines.cuda.gpu import KNOWN, Gpu, gpu_of
from codegemm.errors import KernelError
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel, Product
from codegemm.measuring import conditions
from codegemm.measuring.accuracy import exact, inputs, relative_error
from codegemm.measuring.stopwatch import Candidate, Ready, Timing, turn
from codegemm.reporting import by


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

    def times(self, products: Sequence[tuple[Kernel, Weight]]) -> list[Timing]:
        """Of products with one row of x, which take turns, in rounds. KernelError for one that is wrong."""
        with conditions.path(self.settings.paths[0]):
            ready = [self._ready(kernel, weight) for kernel, weight in products]
            found: list[list[float]] = [[] for _ in ready]
            each = self.settings.seconds / self.settings.rounds
            for number in range(self.settings.rounds):
                for place in range(len(ready))[:: -1 if number % 2 else 1]:
                    found[place].append(turn(ready[place].call, each)[0])
        return [Timing(tuple(seconds), its.how, len(seconds)) for seconds, its in zip(found, ready)]

    def _ready(self, kernel: Kernel, weight: Weight) -> Ready:
        dtype, device = self.settings.dtype, self.settings.device
        x = inputs(weight.shape[1], 1, dtype)
        ready = Candidate(kernel, weight.to(device), [1], dtype).ready(x)
        error = relative_error(ready.result(), exact(weight, x))
        promised = kernel.tolerance(Product.of(weight.spec, 1, dtype))
        if not error <= promised:
            raise KernelError(f"{kernel.name}, {by(weight.shape)}: error {error:.1e}, it promises {promised:.0e}")
        return ready
