"""Dense products on a GPU with a weight that is rebuilt slice by slice at every call: for many rows of x."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from codegemm import kernels_cu
from codegemm.arrays import array_module
from codegemm.engines.cuda import gemm
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.model import START, Work
from codegemm.engines.cuda.rows import code_type
from codegemm.engines.cuda.steps import Array, Gemm, Launch, Place, Scratch, Step, instance, structure
from codegemm.engines.cut import row_slices
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Product

FEW_ROWS = 64  # of x; for more the weights may be rounded to bfloat16 unasked
SLICE_BYTES = 256 << 20  # of dense weights at a time
MOST_SLICES = 1 << 12  # each with launches of its own
SOURCE = "dequantize.cu"
THREADS = kernels_cu.constant(SOURCE, "most_threads")
BLOCKS = 8  # a multiprocessor
ARGUMENTS = kernels_cu.structure(SOURCE, "Dequantize")


class DequantDense(CudaKernel[CodebookSpec, CodebookWeight]):
    """Rebuilds slices of rows in x's dtype and multiplies them by cuBLAS: for many rows of x.

    Its error is that of rounding the weights: about 2e-4 of the result's norm in float16, 1.7e-3 in bfloat16.
    """

    name = "dequant_dense"
    weights = CodebookWeight
    automatic = True
    few_rows = 0  # the launches depend on neither n nor y

    def __init__(self, slice_bytes: int = SLICE_BYTES) -> None:
        self.slice_bytes = slice_bytes

    def unavailable(self) -> str | None:
        return super().unavailable() or gemm.unavailable()

    def is_automatic(self, product: Product[CodebookSpec]) -> bool:
        return product.n > FEW_ROWS or product.dtype.name != "bfloat16"

    def tolerance(self, product: Product[CodebookSpec]) -> float:
        return 3e-3

    def unfit_for(self, product: Product[CodebookSpec], gpu: Gpu) -> str | None:
        most = most_rows(product.spec, product.dtype, self.slice_bytes)
        count = sum(-(-rows // most) for rows in product.spec.part_rows)
        return None if count <= MOST_SLICES else f"{count} slices of the dense matrix: it rebuilds up to {MOST_SLICES}"

    def arrange(self, weight: CodebookWeight) -> Prepared:
        arrays = {"codes": weight.codes, "codebooks": _whole_words(weight.part_codebooks), "scales": weight.scales}
        return Prepared(weight.spec, weight.device, arrays)

    def steps(self, product: Product[CodebookSpec], gpu: Gpu, scratch: Scratch) -> list[Step]:
        spec = product.spec
        pieces = slices(spec, product.dtype, self.slice_bytes)
        most = max(end - first for _, first, end in pieces)
        place = scratch.take("dense", (most, spec.in_features), product.dtype)
        steps: list[Step] = []
        for part, first, end in pieces:
            dense = replace(place, shape=(end - first, spec.in_features))
            work = gemm.work(dense.shape, product.n, product.dtype)
            steps += [_dequantize(product, part, first, dense, gpu), Gemm(dense, work, first)]
        return steps


def slices(spec: CodebookSpec, dtype: np.dtype, most_bytes: int) -> list[list[int]]:
    """(part, first row, end row) of near-equal slices of at most so many bytes in `dtype`, none across parts."""
    return row_slices(spec.part_rows, most_rows(spec, dtype, most_bytes)).tolist()


def most_rows(spec: CodebookSpec, dtype: np.dtype, most_bytes: int) -> int:
    """Of such a slice; one at least."""
    return max(1, most_bytes // (dtype.itemsize * spec.in_features))


def codebook_bytes(spec: CodebookSpec) -> int:
    """Of one part's codebooks, in whole words."""
    return -(-2 * spec.config.m * spec.config.v * spec.config.centroids // 4) * 4


def in_shared_memory(spec: CodebookSpec, gpu: Gpu) -> bool:
    """Whether the codebooks fit beside another thread block's."""
    return codebook_bytes(spec) <= gpu.shared_per_multiprocessor // 4


def _dequantize(product: Product[CodebookSpec], part: int, first: int, dense: Place, gpu: Gpu) -> Launch:
    """Rebuilds rows of a part, from `first` on."""
    spec, config, (rows, k) = product.spec, product.spec.config, dense.shape
    shared = in_shared_memory(spec, gpu)
    lookups = rows * spec.vectors * config.m
    return Launch(
        SOURCE,
        instance("dequantize", config.v, code_type(spec), product.dtype, shared),
        grid=(min(rows, BLOCKS * gpu.multiprocessors),),
        threads=THREADS,
        shared_bytes=codebook_bytes(spec) if shared else 0,
        arguments=(
            np.int32(dense.start),
            structure(
                ARGUMENTS,
                spec,
                config,
                codes=Array("codes", first),
                codebooks=Array("codebooks", part),
                scales=Array("scales", first),
                rows=rows,
                codebooks_count=config.m,
            ),
        ),
        work=Work(
            bytes_read=lookups * spec.code_bytes + 2 * rows * spec.groups + codebook_bytes(spec),
            bytes_written=dense.nbytes,
            l2_bytes=0 if shared else 2 * lookups * config.v,
            # Random centroids meet in banks: about three wavefronts where one would do.
            wavefronts=lookups / 32 * max(1, config.v // 4) * 6,
            instructions=rows * k / 32 * 4,
            latency=START,
        ),
    )


def _whole_words(books: Any) -> Any:
    """[parts, m, centroids, v] as [parts, whole words of fp16], so that a kernel copies words."""
    flat = books.reshape(len(books), -1)
    if flat.shape[1] % 2 == 0:
        return flat
    padded = array_module(books).zeros((len(books), flat.shape[1] + 1), np.float16)
    padded[:, :-1] = flat
    return padded
