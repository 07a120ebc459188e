"""TransformedWeights by the kernels of their cores: what is done before and after, the same on both engines.

    before: x' = R P x, once for each term unless the inner kernel folds them; its sums over groups
    inner: y' = x' @ C^T
    after: y = y' + sums @ A^T

A [M, K/g] is what is added to the weights of each group; on the CPU the inner kernel adds that part, made before it, as
it adds a bias. x' is in float32 where it isn't x itself (or, where an engine says so, in another dtype, and `scaled`:
with a power of two for each row), y' where it isn't y itself.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np

from codegemm import devices
from codegemm.arrays import array_module
from codegemm.formats.transformed import TransformedSpec, TransformedWeight
from codegemm.formats.weight import Spec
from codegemm.kernel import Kernel, Product

FLOAT32 = np.dtype(np.float32)


class TransformedKernel(Kernel[TransformedSpec, TransformedWeight]):
    """A kernel for weights of some kind, under its own name, for weights that have such a one as their core."""

    weights = TransformedWeight

    def __init__(self, inner: Kernel) -> None:
        self.inner = inner
        self.name, self.engine = inner.name, inner.engine
        self.automatic, self.precision = inner.automatic, inner.precision
        self.rearranged = inner.rearranged

    def unavailable(self) -> str | None:
        return self.inner.unavailable()

    def path(self) -> str:
        return self.inner.path()

    def is_automatic(self, product: Product[TransformedSpec]) -> bool:
        core = self.apart(product).spec.core
        return self.inner.is_automatic(Product(core, product.n, product.dtype, product.out_dtype))

    def tolerance(self, product: Product[TransformedSpec]) -> float:
        return self.inner.tolerance(inner_product(self.apart(product)))

    def apart(self, product: Product[TransformedSpec]) -> Product[TransformedSpec]:
        """The product with its spec taken apart into a core as the inner kernel takes it, and what is around that."""
        return replace(product, spec=self._folded(product.spec))

    def core_and_around(self, weight: TransformedWeight) -> TransformedWeight:
        """The same of a weight."""
        return weight.folded if self.inner.folds else weight

    def _folded(self, spec: TransformedSpec) -> TransformedSpec:
        return spec.folded if self.inner.folds else spec

    @abstractmethod
    def inside(self, prepared: Any) -> Any:
        """What the inner kernel prepared of the core."""

    def let_go(self, weight: TransformedWeight, prepared: Any) -> None:
        self.inner.let_go(weight.core, self.inside(prepared))
        weight.let_go(prepared, {})

    def bits_per_weight(self, spec: TransformedSpec) -> float:
        spec = self._folded(spec)
        more = (spec.packed_bits - spec.core.packed_bits) / (spec.out_features * spec.in_features)
        return spec.terms * self.inner.bits_per_weight(spec.core) + more


def arrays_around(weight: TransformedWeight) -> dict[str, Any]:
    """Where the weight is: in float32 `factors`, signs over the root of the block [K], and `addends` [K/g, M]; in int32
    `order`, the place in x of each number of x' [K]."""
    spec, arrays = weight.spec, {}
    if spec.block:
        factors = devices.to_host(weight.signs) / np.sqrt(spec.block)
        arrays["factors"] = devices.move(factors.astype(np.float32), weight.device)
    if spec.offsets:
        with devices.beside(weight.offsets):
            arrays["addends"] = array_module(weight.offsets).ascontiguousarray(weight.addends(np.float32).T)
    if spec.ordered:
        arrays["order"] = weight.order
    return arrays


def changes_x(spec: TransformedSpec) -> bool:
    """Whether x' is another than x."""
    return bool(spec.block) or spec.terms > 1 or spec.ordered


def inner_product(product: Product[TransformedSpec], dtype: np.dtype = FLOAT32, scaled: bool = False) -> Product[Spec]:
    """What the inner kernel multiplies: x itself where kernels know its dtype, else x' of `dtype`."""
    if not changes_x(product.spec) and product.dtype.itemsize < 8:
        dtype = product.dtype
    finished = finishes(product, dtype, scaled)
    return Product(product.spec.core, product.n, dtype, FLOAT32 if finished else product.out_dtype)


def finishes(product: Product[TransformedSpec], dtype: np.dtype, scaled: bool = False) -> bool:
    """Whether something comes after the inner kernel, for x' of `dtype`."""
    return bool(product.spec.offsets) or scaled or (dtype == FLOAT32 and product.out_dtype != FLOAT32)
