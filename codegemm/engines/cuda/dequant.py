"""The dequantising kernel on a GPU: centroids gathered straight into the tensor cores' operands.

A fast form for vectors of 4, 8 and 16 weights and groups of at least 16, and a plain form for all else.
"""

from __future__ import annotations

from types import ModuleType

from codegemm.engines.cuda import dequant_fast, dequant_plain, rows
from codegemm.engines.cuda.dequant_cut import MAX_N, fits
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.steps import Scratch, Step
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Product


class Dequant(CudaKernel[CodebookSpec, CodebookWeight]):
    """Gathers centroids by the codes into mma's operand: any codebook weight, up to 64 rows of x."""

    name = "dequant"
    weights = CodebookWeight
    automatic = True

    def unfit_for(self, product: Product[CodebookSpec], gpu: Gpu) -> str | None:
        if product.n > MAX_N:
            return f"n={product.n}: it multiplies up to {MAX_N} rows of x; dequant_dense is for more"
        return rows.too_many_parts(product.spec)

    def arrange(self, weight: CodebookWeight) -> Prepared:
        return form(weight.spec).arrange(weight)

    def steps(self, product: Product[CodebookSpec], gpu: Gpu, scratch: Scratch) -> list[Step]:
        return form(product.spec).steps(product, gpu, scratch)


def form(spec: CodebookSpec) -> ModuleType:
    """What multiplies such weights."""
    return dequant_fast if fits(spec) else dequant_plain
