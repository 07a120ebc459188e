"""The dequantising kernel on a GPU: centroids gathered straight into the tensor cores' operands.

A fast form for vectors of 4, 8 and 16 weights and groups of at least 16, and a plain form for all else. Weights of the
fast form are also those of Hopper's form for many rows of x, unless of W there are few.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from codegemm.engines.cuda import dequant_cut, dequant_fast, dequant_plain, dequant_wide, dequant_wide_cut, rows
from codegemm.engines.cuda import dequant_layout as layout
from codegemm.engines.cuda.dequant_cut import MAX_N, fits
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.steps import Scratch, Step
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Product

_FAST = 1.1  # times as long as estimated the fast form takes where the two forms' times are near each other


class Dequant(CudaKernel[CodebookSpec, CodebookWeight]):
    """Gathers centroids by the codes into mma's operand: any codebook weight, up to 64 rows of x, 128 on Hopper."""

    name = "dequant"
    weights = CodebookWeight
    automatic = True
    rearranged = ("codes",)

    def unfit_for(self, product: Product[CodebookSpec], gpu: Gpu) -> str | None:
        if product.n > MAX_N and not dequant_wide_cut.fits(product, gpu):
            return f"n={product.n}: it multiplies up to {MAX_N} rows of x; dequant_dense is for more"
        reason = rows.too_many_parts(product.spec)
        return layout.too_many_scales(product.spec) if reason is None and fits(product.spec) else reason

    def tolerance(self, product: Product[CodebookSpec]) -> float:
        pairs = product.spec.config.m > 1  # of centroids, which are added in fp16: 2.4e-4
        return max(super().tolerance(product), 1e-3 if pairs else 0)

    def arrange(self, weight: CodebookWeight) -> Prepared:
        return form(weight.spec).arrange(weight)

    def restore(self, prepared: Prepared[CodebookSpec], name: str) -> Any:
        return form(prepared.spec).restore_codes(prepared.arrays[name], prepared.spec)

    def steps(self, product: Product[CodebookSpec], gpu: Gpu, scratch: Scratch) -> list[Step]:
        module = dequant_wide if _goes_wide(product, gpu) else form(product.spec)
        return module.steps(product, gpu, scratch)


def form(spec: CodebookSpec) -> ModuleType:
    """What arranges such weights, and multiplies by them on any GPU."""
    return dequant_fast if fits(spec) else dequant_plain


def _goes_wide(product: Product[CodebookSpec], gpu: Gpu) -> bool:
    """Whether Hopper's form multiplies so: where it can, and of few rows of W only if the fast form is not sooner."""
    if not dequant_wide_cut.fits(product, gpu):
        return False
    return product.n > MAX_N or _seconds(dequant_wide_cut, product, gpu) < _FAST * _seconds(dequant_cut, product, gpu)


def _seconds(module: ModuleType, product: Product[CodebookSpec], gpu: Gpu) -> float:
    """Of a form, by its estimates."""
    return module.estimate(module.cut_for(product.spec, product.n, gpu), product.spec, gpu)
