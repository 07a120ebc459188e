"""A kernel and a weight that it is tried with: the products that it takes, each watched while it runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from codegemm.arrays import FLOATS, float_dtype
from codegemm.devices import CPU, Device
from codegemm.engines.cuda.steps import COUNTER_BYTES
from codegemm.kernel import Kernel, Product
from codegemm.registry import kernel_for, refusal
from codegemm.testing.guarded import Guarded, is_unwritten, poisoned, unwritten
from codegemm.testing.problems import Problem
from codegemm.testing.truth import Truth, norm

ROWS = (1, 2, 3, 6, 7, 16, 33)  # of x
# Of a number that is rounded to nearest, of the number.
_ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
_LARGE = 1 << 18  # bits, with codebooks
_FLOAT32 = np.dtype(np.float32)
_FEW_OUTPUTS = 64  # on a GPU errors are those of many numbers on average: of few they may be twice as large


class Trial:
    """What a kernel makes of one weight.

    turn: which dtypes come first where not all do. tolerance: in place of the kernel's own.
    """

    def __init__(
        self, kernel: Kernel, problem: Problem, device: Device, seed: int, turn: int = 0, tolerance: float | None = None
    ) -> None:
        host = problem.weight(seed)
        self.spec, self.device, self.turn = host.spec, device, turn
        self.kernel, self._tolerance = kernel_for(kernel, self.spec), tolerance
        self.weight: Any = host.to(device)
        self.rng = np.random.default_rng(seed)
        x = self.rng.standard_normal((max(ROWS), self.spec.in_features))
        self.x = {name: x.astype(float_dtype(name)) for name in FLOATS}
        self._host: Any = host
        self.taken, self.refusals = self._decide()

    def _decide(self) -> tuple[list[Product], list[str]]:
        """The products that the kernel takes, in the order of their rows of x, and why it doesn't take the others."""
        taken, refusals = [], []
        for n, name in itertools.product(ROWS, FLOATS):
            product = Product.of(self.spec, n, name)
            reason = self._guard(product, "refuses", refusal, self.kernel, product, self.device)
            if reason is None:
                taken += [replace(product, out_dtype=y) for y in dict.fromkeys((product.dtype, _FLOAT32))]
            else:
                refusals.append(reason)
        return taken, refusals

    def many(self) -> Iterable[Product]:
        """All of them, or of a large weight one for every number of rows."""
        return self.taken if self.spec.packed_bits <= _LARGE else self.in_turn()

    def ends(self) -> list[Product]:
        """One of the fewest rows, and of the most where that is another."""
        first, *others = self.in_turn()
        return [first, *others[-1:]]

    def in_turn(self) -> Iterator[Product]:
        """One product for every number of rows, each of other dtypes than the one before."""
        for turn, (_, group) in enumerate(itertools.groupby(self.taken, lambda product: product.n), self.turn):
            products = list(group)
            yield products[turn % len(products)]

    @cached_property
    def truth(self) -> Truth:
        """Of all rows of x, those of each dtype behind those of another."""
        return Truth(np.concatenate([x.astype(np.float64) for x in self.x.values()]), self._host)

    def rows_of(self, product: Product) -> slice:
        """A product's rows in the truth."""
        first = list(self.x).index(product.dtype.name) * max(ROWS)
        return slice(first, first + product.n)

    def x_of(self, product: Product) -> npt.NDArray:
        """As many rows as it has."""
        return self.x[product.dtype.name][: product.n]

    @cached_property
    def prepared(self) -> Any:
        """The weight in the kernel's form."""
        return self.ask(self.taken[0], "prepare", self.weight, self.device)

    def forget_weight(self) -> None:
        """What was prepared of it stays; there are no more plans."""
        self.weight = self._host = None

    def ask(self, product: Product, method: str, *arguments: Any) -> Any:
        """What a method of the kernel answers; AssertionError where it raises something."""
        return self._guard(product, method, getattr(self.kernel, method), *arguments)

    def _guard(self, product: Product, what: str, call: Any, *arguments: Any) -> Any:
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                return call(*arguments)
        except Exception as error:
            message = f"{self.about(product)}: `{what}` raised {type(error).__name__}: {error}"
            raise AssertionError(message) from error

    def fail(self, product: Product, what: str) -> NoReturn:
        """AssertionError that says of which product."""
        raise AssertionError(f"{self.about(product)}: {what}")

    def about(self, product: Product) -> str:
        """In the words of all complaints."""
        spec, (m, k) = self.spec, self.spec.shape
        parts = getattr(spec, "part_rows", (m,))
        joined = f" of {len(parts)} parts" if len(parts) > 1 else ""
        biased = " and a bias" if product.biased else ""
        return (
            f"kernel {self.kernel.full_name}, {spec.name} [{m}, {k}]{joined}, x [{product.n}, {k}] {product.dtype}, "
            f"y {product.out_dtype}{biased}"
        )

    def multiply(
        self, product: Product, x: npt.NDArray, bias: Any = None, *, prepared: Any = None, bound: bool = False
    ) -> npt.NDArray:
        """y as the kernel leaves it, in poisoned memory with a poisoned workspace of just the bytes that it asks for.

        prepared: in place of the weight's own. bound: by `bind` and not by `run`. AssertionError where it touches what
        it must not, or leaves a number of y unwritten.
        """
        prepared = self.prepared if prepared is None else prepared
        own_dtype = replace(product, out_dtype=product.dtype)
        size = self.ask(product, "workspace", own_dtype, self.device)
        if not isinstance(size, (int, np.integer)) or size < 0:
            self.fail(product, f"`workspace` is {size}, must be a number of bytes")
        # On the CPU arrays may begin at any of their numbers, on a GPU where 16 bytes can be loaded.
        shift = 1 if self.device == CPU else 0
        y = unwritten((product.n, self.spec.out_features), product.out_dtype)
        here, there = (Guarded(array, self.device, shift * array.itemsize) for array in (x, y))
        workspace = Guarded(self._new_workspace(int(size)), self.device)
        added = () if bias is None else (Guarded(bias, self.device).array,)
        arguments = here.array, there.array, workspace.array, None, *added
        if bound:
            self._guard(product, "bind", self.ask(product, "bind", prepared, product), *arguments)
        else:
            self.ask(product, "run", prepared, *arguments)
        self._check_memory(product, x, here, there, workspace)
        return self._written(product, there.host())

    def _new_workspace(self, size: int) -> npt.NDArray:
        """Arbitrary bytes, but for those of a GPU's counters."""
        if self.device == CPU:
            return poisoned(size)
        content = poisoned(max(size, COUNTER_BYTES))
        content[:COUNTER_BYTES] = 0
        return content

    def _check_memory(self, product: Product, x: Any, here: Guarded, there: Guarded, workspace: Guarded) -> None:
        if here.host().tobytes() != x.tobytes() or not here.is_intact():
            self.fail(product, "it wrote to x")
        if not there.is_intact():
            self.fail(product, "it wrote beyond y")
        if not workspace.is_intact():
            self.fail(product, f"it wrote beyond its workspace of {workspace.array.nbytes} bytes")
        if self.device != CPU and workspace.host()[:COUNTER_BYTES].any():
            self.fail(product, f"it left numbers other than 0 in the first {COUNTER_BYTES} bytes of its workspace")

    def _written(self, product: Product, y: npt.NDArray) -> npt.NDArray:
        places = np.argwhere(is_unwritten(y))
        if len(places):
            self.fail(product, f"it left {len(places)} of {y.size} numbers of y unwritten, y{_place(places[0])}")
        return y

    def check_close(self, product: Product, y: npt.NDArray, rows: slice, bias: Any = 0, of: str = "its error") -> None:
        """AssertionError unless y, rows of the product, is those rows of the truth and a bias, but for the kernel's
        tolerance and y's rounding."""
        wanted, size = self.truth.y[rows] + bias, self.truth.norm(rows)
        wrong = np.argwhere(~np.isfinite(y.astype(np.float64)))
        if len(wrong):
            place = tuple(wrong[0])
            self.fail(product, f"y{_place(wrong[0])} is {y[place]}, must be {wanted[place]:.6g}")
        allowed = self.tolerance(product)
        scatter = 2 if self.device != CPU and y.size < _FEW_OUTPUTS else 1
        far = norm(y.astype(np.float64) - wanted)
        if far > allowed * scatter * size + _ROUNDING[product.out_dtype.name] * norm(wanted):
            relative = far / size if size else far
            self.fail(product, f"{of} is {relative:.2e} of y's norm, its tolerance {allowed:.2e}")

    def tolerance(self, product: Product) -> float:
        """What the kernel promises, unless something else was said."""
        own = self.ask(product, "tolerance", product)
        return float(own) if self._tolerance is None else self._tolerance


def _place(index: npt.NDArray) -> str:
    return f"[{', '.join(map(str, index))}]"
