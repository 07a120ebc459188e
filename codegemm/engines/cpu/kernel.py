"""What a CPU kernel says of itself, a C++ source, a function in it and the same in NumPy, and all that follows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from ctypes import Structure, c_int
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic

import numpy as np

from codegemm import operands
from codegemm.devices import Device
from codegemm.engines import limits
from codegemm.engines.cpu import costs, isa, library
from codegemm.kernel import Kernel, Product, S, W

NUMPY = "numpy"  # the path of kernels without a compiler


@dataclass
class Prepared(Generic[S]):
    """A weight as a kernel reads it: what it is, and its arrays among the arguments."""

    spec: S
    arguments: library.Arguments


class CpuKernel(Kernel[S, W]):
    """A kernel compiled at first use.

    source: its C++ file. entry: the function in it that multiplies, `extern "C"`, of the parallel loop, a pointer to
    its arguments and `parameters()`. structure: of those arguments; what `prepare` makes has them filled in as
    `arguments` (`library.Arguments`). A kernel with several functions says by `function` which.
    """

    engine = "cpu"
    adds_bias = True
    source: ClassVar[Path]
    entry: ClassVar[str]
    structure: ClassVar[type[Structure]]

    def function(self, n: int) -> Any:
        """The compiled function for n rows of x; None without a compiler."""
        return library.function(self.source, self.entry, self.structure, *[c_int] * len(self.parameters()))

    def parameters(self) -> tuple[int, ...]:
        """What the function is told beside its arguments."""
        return ()

    def path(self) -> str:
        return NUMPY if self.function(1) is None else isa.chosen().name

    def refuses(self, product: Product[S], device: Device) -> str | None:
        """What its integers don't count; a kernel that refuses more asks this, too."""
        return limits.beyond(product)

    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any, bias: Any = None) -> None:
        function, added = self.function(len(x)), () if bias is None else (bias,)
        if function is not None:
            self.run_compiled(function, prepared, x, out, workspace, *added)
            return
        y = np.empty(out.shape, np.float32) if added else out
        self.run_numpy(prepared, x, y, workspace)
        if added:
            operands.add_bias(y, bias, out)

    def run_compiled(self, function: Any, prepared: Any, x: Any, out: Any, workspace: Any, bias: Any = None) -> None:
        """out = x @ W^T + bias by the compiled function."""
        prepared.arguments.call(function, x, out, workspace, *self.parameters(), bias=bias)

    def is_one_call(self, n: int) -> bool:
        """Whether a product of n rows is a call of the compiled function and nothing else, which a plan makes without
        `run`; one that runs in a way of its own says when."""
        return type(self).run is CpuKernel.run and type(self).run_compiled is CpuKernel.run_compiled

    def bound(self, prepared: Any, product: Product[S], bias_pitch: int = 0) -> Callable[..., None] | None:
        """`run` for exactly this product, of the addresses of x, out, the workspace and a bias (0 for none); None
        where there is more to it than a call of the compiled function.

        bias_pitch: from the bias for one row of x to that for the next; by default there is one [M] for all.
        """
        function = self.function(product.n) if self.is_one_call(product.n) else None
        if function is None:
            return None
        call: Callable[..., None] = prepared.arguments.bound(
            function, product.n, product.dtype, product.out_dtype, *self.parameters(), bias_pitch=bias_pitch
        )
        return call

    def work(self, product: Product[S]) -> tuple[costs.Work, ...]:
        """Of this product, by the ways that it is multiplied in; none if costs.json does not know them."""
        return ()

    def estimate(self, product: Product[S], device: Device) -> float:
        """By what its work takes, where that was measured; else by its bytes."""
        known = [costs.seconds(work) for work in self.work(product)]
        seconds = [each for each in known if each is not None]
        return sum(seconds) if seconds and seconds == known else super().estimate(product, device)

    @abstractmethod
    def run_numpy(self, prepared: Any, x: Any, out: Any, workspace: Any) -> None:
        """The same where there is no compiler."""

    def builds(self, product: Product[S], device: Device) -> Iterable[library.Load]:
        return library.loads(self.source)
