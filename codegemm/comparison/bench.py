"""One case's inputs, and the rows that its measured products become."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from codegemm.choice import select
from codegemm.comparison.result import Row
from codegemm.comparison.selection import DENSE
from codegemm.devices import Device
from codegemm.kernel import Kernel, Product
from codegemm.measuring import conditions
from codegemm.measuring.accuracy import inputs, relative_error
from codegemm.measuring.machine import Machine
from codegemm.measuring.sources import Case
from codegemm.measuring.stopwatch import Timing

Error = Callable[[npt.NDArray], float]


class Bench:
    """The products of one case, told in terms of the dense one, whose rows are made before the others'.

    x: [largest batch, K].
    """

    def __init__(self, case: Case, batches: Sequence[int], machine: Machine) -> None:
        self._case, self._machine = case, machine
        self.dtype = conditions.dtype_of(machine.engine)
        self.x = inputs(case.shape[1], max(batches), self.dtype)
        self._error_to_original: Callable[[npt.NDArray], float | None] = lambda y: None
        if case.original is not None:
            self._error_to_original = error_to(self.x.astype(np.float64) @ case.original.astype(np.float64).T)
        self._dense: dict[int, float] = {}

    def row(
        self,
        kernel: Kernel,
        product: Product,
        device: Device,
        config: str,
        timing: Timing,
        y: npt.NDArray,
        error: Error,
        path: str = "",
    ) -> Row:
        """What was found of a product with a weight on `device`.

        y: the product [n, M]; error: how far that is from the product of the first n rows of x.
        """
        seconds, n, is_dense = timing.median, product.n, kernel.name in DENSE
        if kernel.name == "dense":
            self._dense[n] = seconds
        cost = kernel.cost(product, device)
        row = Row(
            case=self._case.title,
            shape=self._case.shape,
            kernel=kernel.name,
            precision=kernel.precision,
            path=path,
            config="" if is_dense else config,
            bits_per_weight=kernel.bits_per_weight(product.spec),
            batch=n,
            seconds=seconds,
            quartiles=timing.quartiles,
            rounds=timing.seconds,
            calls=timing.calls,
            timed=timing.how,
            bytes_read=cost.bytes_read,
            bandwidth_share=0,
            times_dense=self._dense[n] / seconds if n in self._dense else None,
            error=error(y),
            tolerance=kernel.tolerance(product),
            error_to_original=self._error_to_original(y),
            chosen=kernel.is_automatic(product) and select(product, device) is kernel,
            bytes_written=cost.bytes_written,
            multiply_adds=cost.multiply_adds,
            lookups=cost.lookups,
        )
        return row.held_against(self._machine)


def error_to(truth: npt.NDArray[np.float64]) -> Error:
    """How far y [n, M] is from the first n rows of `truth`."""
    return lambda y: relative_error(y, truth[: len(y)])
