"""What products with a core between two randomised Hadamard rotations share: all but the core's own kernels.

y = SV * U_M(core (U_K^T (SU * x))): few rows of rotated x are multiplied by the codes, many by slices of the core that
are rebuilt in fp16, and cuBLAS.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar, TypeVar

import numpy as np

from codegemm.engines.cuda import gemm, rotation
from codegemm.engines.cuda.dequant_dense import SLICE_BYTES
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.steps import Gemm, Launch, Place, Scratch, Step
from codegemm.engines.cut import split
from codegemm.formats.incoherent import IncoherentSpec, IncoherentWeight
from codegemm.kernel import Product

S = TypeVar("S", bound=IncoherentSpec)
W = TypeVar("W", bound=IncoherentWeight)


class IncoherentKernel(CudaKernel[S, W]):
    """A subclass says how a core is multiplied and rebuilt, in strips of so many rows.

    few_rows: of x, beyond which the core is rebuilt. pairs: whether fp16 of x are in the order that pairs of neighbours
    take (`rotation.launch`).
    """

    automatic = True
    strip_rows: ClassVar[int]
    pairs: ClassVar[bool] = False

    def __init__(self, slice_bytes: int = SLICE_BYTES) -> None:
        self.slice_bytes = slice_bytes

    @abstractmethod
    def parts(self, n: int) -> tuple[int, type[np.number]]:
        """How many numbers each of x becomes for up to `few_rows` rows, and their dtype."""

    @abstractmethod
    def matvec(self, product: Product[S], rotated: Place, sums: Place, gpu: Gpu) -> Launch:
        """sums [n, M] of rotated x [n, parts, K]."""

    @abstractmethod
    def dequantize(self, product: Product[S], first: int, end: int, dense: Place, gpu: Gpu) -> Launch:
        """Rebuilds strips of the core, fp16 [rows, K]."""

    def alike(self, product: Product[S]) -> Product[S]:
        return product  # the rotations' grids grow with n

    def steps(self, product: Product[S], gpu: Gpu, scratch: Scratch) -> list[Step]:
        n, (m, k) = product.n, product.spec.shape
        few = n <= self.few_rows
        count, dtype = self.parts(n)
        scales = scratch.take("scales", (n,), np.float32)
        rotated = scratch.take("rotated", (n, count, k) if few else (n, k), dtype if few else np.float16)
        sums = scratch.take("sums", (n, m), np.float32)
        rotate_in, rotate_out = (
            rotation.launch(side, product, scales, rotated, sums, gpu, self.pairs) for side in ("in", "out")
        )
        if few:
            return [rotate_in, self.matvec(product, rotated, sums, gpu), rotate_out]
        slices = self.slices(product.spec)
        most = self.strip_rows * max(end - first for first, end in slices)
        place = scratch.take("dense", (most, k), np.float16)
        steps: list[Step] = []
        for first, end in slices:
            dense = replace(place, shape=(self.strip_rows * (end - first), k))
            work = gemm.work(dense.shape, n, dense.dtype)
            steps.append(self.dequantize(product, first, end, dense, gpu))
            steps.append(Gemm(dense, work, self.strip_rows * first, rotated, sums))
        return [rotate_in, *steps, rotate_out]

    def slices(self, spec: S) -> list[tuple[int, int]]:
        """(first, end) of near-equal slices of strips, of at most `slice_bytes` in float16."""
        most = max(1, self.slice_bytes // (2 * self.strip_rows * spec.in_features))
        return list(itertools.pairwise(split(spec.out_features // self.strip_rows, most).tolist()))

    def blocks(self, spec: S, gpu: Gpu) -> int:
        """Thread blocks of a product: one a multiprocessor, each with a strip at least."""
        return min(gpu.multiprocessors, spec.out_features // self.strip_rows)
