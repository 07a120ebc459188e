"""TransformedWeights on a GPU: x rotated and its groups added up before the core's product, the offsets' part after."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from codegemm import kernels_cu
from codegemm.engines import limits
from codegemm.engines.cuda.gpu import LANES, Gpu
from codegemm.engines.cuda.kernel import FLOAT32, CudaKernel
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.model import START, Work, balance
from codegemm.engines.cuda.steps import Array, Launch, Place, Scratch, Step, instance, structure
from codegemm.engines.transformed import TransformedKernel, arrays_around, changes_x, finishes, inner_product
from codegemm.formats.transformed import TransformedSpec, TransformedWeight
from codegemm.formats.weight import Spec
from codegemm.kernel import Product

SOURCE = "transformed.cu"
MAX_THREADS = kernels_cu.constant(SOURCE, "most_threads")
FINISH_ROWS = kernels_cu.constant(SOURCE, "finish_rows")  # of x, and warps of a thread block
# Rows beyond which a rotated x is fp16: a library's product takes as long for float32 as for eight times the rows.
FLOAT_ROWS = 64
FLOAT16 = np.dtype(np.float16)
_LEAST_THREADS = 256
_SECTOR_BYTES = 32  # that a number of an ordered x takes through L2, for its neighbours are another block's
_STEP_LATENCY = 40.0  # clocks of a step of a Hadamard transform, which wait for each other
ARGUMENTS = kernels_cu.structure(SOURCE, "Transformed")


@dataclass(frozen=True)
class Cut:
    """A rotation's thread blocks: their threads, and the numbers that a thread holds."""

    threads: int
    each: int

    def row_blocks(self, columns: int) -> int:
        """Thread blocks of a row of x."""
        return -(-columns // (self.threads * self.each))

    @property
    def shared_bytes(self) -> int:
        """Two words a number and one a warp."""
        return 8 * self.threads * self.each + 4 * LANES


def cut_for(block: int) -> Cut:
    """Thread blocks of whole blocks of a rotation."""
    return Cut(max(_LEAST_THREADS, min(block, MAX_THREADS)), max(1, block // MAX_THREADS))


class CudaTransformed(TransformedKernel, CudaKernel[TransformedSpec, TransformedWeight]):
    """Up to three launches around the inner kernel's steps, with arrays beside the inner kernel's."""

    inner: CudaKernel

    def unfit_for(self, product: Product[TransformedSpec], gpu: Gpu) -> str | None:
        product = self.apart(product)
        inner = inside(product)
        sums = product.n * product.spec.groups if product.spec.offsets else 0
        reason = limits.beyond(inner) or self.inner.unfit_for(inner, gpu)
        return reason or limits.too_many("sums of groups", sums, limits.ROWS)

    def tolerance(self, product: Product[TransformedSpec]) -> float:
        return self.inner.tolerance(inside(self.apart(product)))

    def batches(self, n: int) -> Iterable[int]:
        return dict.fromkeys((*self.inner.batches(min(n, FLOAT_ROWS)), *self.inner.batches(n)))

    def arrange(self, weight: TransformedWeight) -> Prepared:
        weight = self.core_and_around(weight)
        core = self.inner.arrange(weight.core)
        return Prepared(weight.spec, weight.device, core.arrays | arrays_around(weight), core.numbers)

    def inside(self, prepared: Prepared[TransformedSpec]) -> Prepared[Spec]:
        return Prepared(prepared.spec.core, prepared.device, prepared.arrays, prepared.numbers)

    def steps(self, product: Product[TransformedSpec], gpu: Gpu, scratch: Scratch) -> list[Step]:
        product = self.apart(product)
        spec, n, scaled = product.spec, product.n, is_scaled(product)
        inner = inside(product)
        core = self.inner.steps(inner, gpu, scratch)
        finished = finishes(product, inner.dtype, scaled)
        around = Around(
            product,
            inner.dtype,
            x=scratch.take("x'", (n, spec.core.in_features), inner.dtype) if changes_x(spec) else None,
            y=scratch.take("y'", (n, spec.out_features), FLOAT32) if finished else None,
            sums=scratch.take("sums of x'", (n, spec.groups), FLOAT32) if spec.offsets else None,
            scales=scratch.take("scales of x'", (n,), FLOAT32) if scaled else None,
        )
        return [
            *([around.rotate_x(gpu)] if around.x else []),
            *([around.sum_groups()] if around.sums else []),
            *(replace(step, x=step.x or around.x, y=step.y or around.y) for step in core),
            *([around.finish()] if finished else []),
        ]


def inside(product: Product[TransformedSpec]) -> Product[Spec]:
    """The inner kernel's product: x' has x's dtype where numbers are only moved. Rotated ones may be too large for two
    bytes: they are float32, or scaled."""
    if not product.spec.block:
        return inner_product(product, product.dtype)
    scaled = is_scaled(product)
    return inner_product(product, FLOAT16 if scaled else FLOAT32, scaled)


def is_scaled(product: Product[TransformedSpec]) -> bool:
    """Whether x' is fp16 under powers of two."""
    return bool(product.spec.block) and product.n > FLOAT_ROWS and product.dtype.itemsize == 2


@dataclass(frozen=True)
class Around:
    """What comes before and after the inner kernel, and where it leaves what: x', of `inner_dtype`, y', x's sums over
    groups, and the rows' powers of two."""

    product: Product[TransformedSpec]
    inner_dtype: np.dtype
    x: Place | None
    y: Place | None
    sums: Place | None
    scales: Place | None

    def rotate_x(self, gpu: Gpu) -> Launch:
        """x' of x."""
        spec, n, k = self.product.spec, self.product.n, self.product.spec.in_features
        cut, stages = cut_for(spec.block), max(spec.block.bit_length() - 1, 0)
        warps = n * k / LANES
        work = Work(
            bytes_read=self.product.x_bytes + 4 * k * (bool(spec.block) + spec.ordered),
            l2_bytes=self.inner_dtype.itemsize * n * spec.core.in_features
            + _SECTOR_BYTES * n * k * spec.ordered
            + (self.product.x_bytes * cut.row_blocks(k) if self.scales else 0),
            wavefronts=warps * (2 + 2 * max(0, stages - 5)),
            instructions=warps * (10 + 4 * stages + 2 * spec.terms + 2 * spec.ordered),
            balance=balance(n * cut.row_blocks(k), gpu.multiprocessors),
            latency=START + stages * _STEP_LATENCY,
        )
        name = instance("rotate_x", self.product.dtype, self.inner_dtype, cut.each)
        return self._launch(name, (n * cut.row_blocks(k),), cut.threads, cut.shared_bytes, work)

    def sum_groups(self) -> Launch:
        """Of x'."""
        spec, n = self.product.spec, self.product.n
        size = n * spec.in_features
        work = Work(l2_bytes=self.inner_dtype.itemsize * size, instructions=size / LANES * 4, latency=START)
        grid = (-(-n * spec.groups * LANES // _LEAST_THREADS),)
        return self._launch(instance("sum_groups", self.inner_dtype), grid, _LEAST_THREADS, 0, work)

    def finish(self) -> Launch:
        """y of y' and the offsets' part."""
        n, m = self.product.n, self.product.spec.out_features
        groups, passes = self.product.spec.groups if self.sums else 0, -(-n // FINISH_ROWS)
        work = Work(
            bytes_read=4 * m * groups,
            bytes_written=self.product.y_bytes,
            l2_bytes=4 * n * m + 4 * (passes - 1) * m * groups,
            wavefronts=m / LANES * passes * 2 * FINISH_ROWS**2,
            instructions=m / LANES * (passes * FINISH_ROWS * 20 + 2 * n * groups),
            latency=START,
        )
        grid, shared = (-(-m // LANES), passes), 4 * LANES * FINISH_ROWS**2
        return self._launch(instance("finish", self.product.dtype), grid, LANES * FINISH_ROWS, shared, work)

    def _launch(self, name: str, grid: tuple[int, ...], threads: int, shared_bytes: int, work: Work) -> Launch:
        spec, product = self.product.spec, self.product
        places = {name: getattr(self, name) or 0 for name in ("x", "y", "sums", "scales")}
        has = {"factors": spec.block, "addends": spec.offsets, "order": spec.ordered}
        arrays = {name: Array(name) if there else 0 for name, there in has.items()}
        arguments = structure(
            ARGUMENTS,
            spec,
            batch=product.n,
            columns=spec.in_features,
            rows=spec.out_features,
            block=max(spec.block, 1),
            groups=spec.groups if self.sums else 0,
            changed=self.x is not None,
            scaled=self.scales is not None,
            y_is_float=product.out_dtype == FLOAT32,
            **places | arrays,
        )
        return Launch(SOURCE, name, grid, threads, shared_bytes, (arguments,), work)
