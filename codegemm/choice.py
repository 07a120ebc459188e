"""Which kernel `auto` takes: a pure function of what was measured and of what is estimated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

REACH = 2.0  # a measured batch counts for batches up to so many times larger or smaller


@dataclass(frozen=True)
class Product:
    """n rows of x in `dtype` times a weight [out_features, in_features] whose configuration is `weights`.

    core: the product with its core where it has one: what was measured for that counts if nothing was for itself.
    """

    weights: str
    shape: tuple[int, int]
    n: int
    dtype: str
    core: Product | None = None

    def choices(self, tuned: Iterable[Choice], crossovers: Iterable[Choice]) -> tuple[list[Choice], list[Choice]]:
        """Those tuned and those measured that count for this configuration and batch."""
        near = [c for c in tuned if (c.shape, c.dtype) == (self.shape, self.dtype)]
        alike = [c for c in crossovers if c.dtype.removeprefix("b") == self.dtype.removeprefix("b")]
        fits = [
            [c for c in each if c.weights == self.weights and c.distance(self.n) <= REACH] for each in (near, alike)
        ]
        return fits[0], fits[1]


@dataclass(frozen=True)
class Choice:
    """What was measured: `kernel` is the fastest from batch `batches[0]` to `batches[1]`."""

    weights: str
    shape: tuple[int, int]
    batches: tuple[int, int]
    dtype: str
    kernel: str

    def distance(self, n: int) -> float:
        """How many times n is larger or smaller than the nearest measured batch, at least 1."""
        low, high = self.batches
        return max(low / n, n / high, 1.0)


def choose(
    product: Product,
    estimates: Mapping[str, float],
    tuned: Iterable[Choice] = (),
    crossovers: Iterable[Choice] = (),
) -> str:
    """The kernel for a product, one of those that `estimates` has a time for.

    1. A choice tuned on this device, for a weight of this very shape, configuration and dtype.
    2. A choice measured on a GPU of this architecture, for this configuration, this shape or else the nearest
       in its number of weights, and this dtype (float16 and bfloat16 are one).
    3. The least estimate.

    Of several batches the nearest in ratio counts (the smaller of two that are as near), up to `REACH`. Choices of
    kernels that aren't among the candidates are passed over.
    """
    wanted = (product,) if product.core is None else (product, product.core)
    found = [(each, each.choices(tuned, crossovers)) for each in wanted]
    for step in (0, 1):
        for each, choices in found:
            known = [c for c in choices[step] if c.kernel in estimates]
            if known:
                return min(known, key=lambda c: _unlike(c, each)).kernel
    return min(estimates, key=lambda name: estimates[name])


def _unlike(choice: Choice, product: Product) -> tuple[bool, float, float, tuple[int, int]]:
    """The less, the sooner a choice counts for a product."""
    ratio = _ratio(choice.shape, product.shape)
    return choice.shape != product.shape, ratio, choice.distance(product.n), choice.batches


def _ratio(shape: tuple[int, int], other: tuple[int, int]) -> float:
    """How many times one matrix has the other's weights, at least 1."""
    ratio = (shape[0] * shape[1]) / (other[0] * other[1])
    return max(ratio, 1 / ratio)
