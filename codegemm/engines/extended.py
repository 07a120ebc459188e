"""ExtendedWeights by the kernels of their cores: what is done before and after, the same on both engines.

    before: x' = R x, once for each term; its sums over groups      inner: y' = x' @ C^T      after: y = y' + sums @ A^T

A [M, K/g] is what is added to the weights of each group. x' is in float32 where it isn't x itself (or, where an engine
says so, fp16 with a power of two for each row), y' where it isn't y itself. They are in the workspace, with the sums,
behind the inner kernel's part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from codegemm.formats.extended import ExtendedSpec
from codegemm.formats.weight import Spec
from codegemm.kernel import Cost, Kernel

FLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
_ALIGNED = 256


@dataclass(frozen=True)
class Places:
    """Where in the workspace, in bytes: x' [n, terms * K]; in float32 y' [n, M], sums [n, K/g] and rows' powers of two
    [n]; and the end."""

    x: int
    y: int
    sums: int
    scales: int
    end: int


@dataclass(frozen=True)
class Given:
    """The inner kernel's x: its dtype, whether it is x' and not x itself, whether its rows are under powers of two."""

    dtype: np.dtype
    changed: bool
    scaled: bool


class ExtendedKernel(Kernel):
    """A kernel for CodebookWeights, under its own name, for weights that have one as their core."""

    extended = True
    least_workspace = 0  # that the inner kernel has whatever it asks for

    def __init__(self, inner: Kernel) -> None:
        self.inner = inner
        self.name, self.engine = inner.name, inner.engine
        self.automatic, self.precision = inner.automatic, inner.precision

    def unavailable(self) -> str | None:
        return self.inner.unavailable()

    def is_automatic(self, n: int, dtype: np.dtype) -> bool:
        return self.inner.is_automatic(n, dtype)

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        if not isinstance(spec, ExtendedSpec):
            return "it multiplies ExtendedWeights"
        return self.inner.supports(spec.core, n, self.given(spec, n, dtype).dtype, device)

    def given(self, spec: ExtendedSpec, n: int, dtype: np.dtype) -> Given:
        """What the inner kernel gets for n rows of `dtype`."""
        return given(spec, dtype)

    def workspace(self, spec: Spec, n: int, device: str) -> int:
        return self.places(spec, n, device).end

    def places(self, spec: Spec, n: int, device: str) -> Places:
        """Where n rows have what."""
        assert isinstance(spec, ExtendedSpec)
        inner = max(self.least_workspace, self.inner.workspace(spec.core, n, device))
        x = _aligned(inner)
        y = x + _aligned(4 * n * spec.core.in_features)
        sums = y + _aligned(4 * n * spec.out_features)
        scales = sums + _aligned(4 * n * (spec.groups if spec.offsets else 0))
        return Places(x, y, sums, scales, scales + _aligned(4 * n))

    def builds(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> Iterable[Callable[[], object]]:
        assert isinstance(spec, ExtendedSpec)
        return self.inner.builds(spec.core, n, self.given(spec, n, dtype).dtype, device)

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        assert isinstance(spec, ExtendedSpec)
        given = self.given(spec, n, dtype)
        inner = self.inner.cost(spec.core, n, given.dtype)
        costs = (inner, *around(spec, n, dtype, given))
        # y' takes the place of what the inner kernel says that it writes.
        wider = 4 - given.dtype.itemsize if finishes(spec, given, dtype) else 0
        return Cost(
            bytes_read=sum(cost.bytes_read for cost in costs),
            bytes_written=sum(cost.bytes_written for cost in costs) + wider * n * spec.out_features,
            lookups=inner.lookups,
            multiply_adds=sum(cost.multiply_adds for cost in costs),
            launches=sum(cost.launches for cost in costs),
        )

    def bits_per_weight(self, spec: Spec) -> float:
        assert isinstance(spec, ExtendedSpec)
        more = (spec.packed_bits - spec.core.packed_bits) / (spec.out_features * spec.in_features)
        return spec.terms * self.inner.bits_per_weight(spec.core) + more


def changes_x(spec: ExtendedSpec) -> bool:
    """Whether the inner kernel gets another x than its own."""
    return bool(spec.block) or spec.terms > 1


def given(spec: ExtendedSpec, dtype: np.dtype, halves: bool = False) -> Given:
    """What the inner kernel gets for x of `dtype`: float32 for x', which half types may not hold, and for float64.

    halves: whether x' of half types shall be fp16 under powers of two.
    """
    changed = changes_x(spec)
    if changed and halves and dtype.itemsize == 2:
        return Given(FLOAT16, changed, scaled=True)
    return Given(FLOAT32 if changed or dtype.itemsize == 8 else dtype, changed, scaled=False)


def finishes(spec: ExtendedSpec, given: Given, out_dtype: np.dtype) -> bool:
    """Whether something comes after the inner kernel, for y of such a dtype."""
    return bool(spec.offsets) or given.scaled or (given.dtype == FLOAT32 and out_dtype != FLOAT32)


def around(spec: ExtendedSpec, n: int, dtype: np.dtype, given: Given) -> tuple[Cost, Cost]:
    """What comes before the inner kernel, and what comes after it, for y of x's dtype."""
    (rows, columns), changed = spec.shape, given.changed
    groups = spec.groups if spec.offsets else 0
    adds = columns * max(spec.block.bit_length() - 1, 0) + (columns if groups else 0)
    before = Cost(
        bytes_read=n * columns * dtype.itemsize + (4 * columns if spec.block else 0),
        bytes_written=n * (4 * groups + (given.dtype.itemsize * spec.core.in_features if changed else 0)),
        lookups=0,
        multiply_adds=n * adds,
        launches=int(changed) + bool(groups),
    )
    if not finishes(spec, given, dtype):
        return before, Cost(0, 0, 0, 0, launches=0)
    after = Cost(
        bytes_read=4 * (n * rows + groups * (n + rows)),
        bytes_written=n * rows * dtype.itemsize,
        lookups=0,
        multiply_adds=n * rows * groups,
    )
    return before, after


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
