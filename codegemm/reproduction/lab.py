"""Where experiments are made: on this machine's engine, or by the cost model of a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy.typing as npt

from codegemm.comparison import rounds, runner
from codegemm.comparison.selection import Entry
from codegemm.engines.cuda.gpu import KNOWN, Gpu, gpu_of
from codegemm.errors import KernelError
from codegemm.formats.codebook import CodebookSpec
from codegemm.formats.format import spec_of
from codegemm.formats.weight import Weight
from codegemm.kernel import Kernel, Product
from codegemm.measuring import conditions, memory
from codegemm.measuring.accuracy import exact, inputs, relative_error
from codegemm.measuring.stopwatch import Candidate, Ready, Timing
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
        """Of products with one row of x, of the same in_features, in the comparison's rounds; whatever one raises, and
        KernelError for one that is wrong."""
        path, settings = self.settings.paths[0], self.settings
        x = self._x(products[0][1])

        def fail(timed: rounds.Timed, error: BaseException) -> None:
            raise error

        timed = []
        with conditions.path(path):
            for kernel, weight in products:
                product = Product.of(weight.spec, 1, settings.dtype)
                entry = Entry(kernel, weight.spec.name, (product,), path, path, memory.Taken(0, 0))
                timed.append(rounds.Timed(entry, product, self.ready(kernel, weight)))
        through = rounds.run(timed, x, settings.rounds, settings.seconds, fail, lambda: None)
        return [each.timing for each in through]

    def ready(self, kernel: Kernel, weight: Weight) -> Ready:
        """A product with one row of x, ready to be timed on this instruction set. KernelError where it is wrong."""
        x = self._x(weight)
        ready = Candidate(kernel, weight.to(self.settings.device), [1], self.settings.dtype).ready(x)
        error = relative_error(ready.result(), exact(weight, x))
        promised = kernel.tolerance(Product.of(weight.spec, 1, self.settings.dtype))
        if not error <= promised:
            raise KernelError(f"{kernel.name}, {by(weight.shape)}: error {error:.1e}, it promises {promised:.0e}")
        return ready

    def _x(self, weight: Weight) -> npt.NDArray:
        return inputs(weight.shape[1], 1, self.settings.dtype)


def codebook_spec(shape: tuple[int, int], config: str) -> CodebookSpec:
    """Of a weight of codebooks."""
    spec = spec_of(shape, config)
    assert isinstance(spec, CodebookSpec)
    return spec
