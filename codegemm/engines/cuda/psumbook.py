"""The Psumbook kernel (CodeGEMM) on a GPU: tables of inner products in shared memory, gathered by the codes."""

from __future__ import annotations

from typing import Any

from codegemm import kernels_cu
from codegemm.engines.cuda import psumbook_layout as layout
from codegemm.engines.cuda import rows
from codegemm.engines.cuda.gpu import LANES, Gpu
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.psumbook_cut import BATCHES, Cut, cut_for, work
from codegemm.engines.cuda.steps import Launch, Number, Scratch, Step, instance, structure
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Product

SOURCE = "psumbook.cu"
MAX_N = BATCHES[-1]
MAX_B = 8
ARGUMENTS = kernels_cu.structure(SOURCE, "Psumbook")


class Psumbook(CudaKernel[CodebookSpec, CodebookWeight]):
    """Builds the tables of all centroids' inner products with x by tensor cores and gathers by the codes."""

    name = "psumbook"
    weights = CodebookWeight
    automatic = True
    rearranged = ("codes",)

    def unfit_for(self, product: Product[CodebookSpec], gpu: Gpu) -> str | None:
        b, n = product.spec.config.b, product.n
        if b > MAX_B:
            return f"b={b}: its tables hold 2^b entries a position, b up to {MAX_B}"
        if n > MAX_N:
            return f"n={n}: its tables hold up to {MAX_N} rows of x; more cost more lookups than dequantising does"
        return rows.too_many_parts(product.spec) or layout.too_many_loads(product.spec)

    def arrange(self, weight: CodebookWeight) -> Prepared:
        arrays = {
            "codes": layout.arrange_codes(weight),
            "codebooks": layout.arrange_codebooks(weight),
            "scales": layout.arrange_scales(weight),
        }
        return Prepared(weight.spec, weight.device, arrays, {"table_scale": layout.table_scale(weight)})

    def restore(self, prepared: Prepared[CodebookSpec], name: str) -> Any:
        return layout.restore_codes(prepared.arrays[name], prepared.spec)

    def steps(self, product: Product[CodebookSpec], gpu: Gpu, scratch: Scratch) -> list[Step]:
        return [launch(product, cut_for(product.spec, product.n, gpu), gpu, scratch)]


def launch(product: Product[CodebookSpec], cut: Cut, gpu: Gpu, scratch: Scratch) -> Launch:
    """A product cut so."""
    spec, config = product.spec, product.spec.config
    values = (config.v, config.m, config.b, layout.phases(spec), cut.batch, product.dtype, cut.rows)
    arguments = structure(
        ARGUMENTS,
        spec,
        cut,
        row_blocks=rows.row_blocks(spec),
        scale_shift=layout.scale_shift(spec),
        table_scale=Number("table_scale"),
        slices=rows.slices_argument(cut.slices),
    )
    return rows.split_launch(
        product,
        cut.partials,
        scratch,
        arguments,
        source=SOURCE,
        instance=instance("psumbook", *values),
        grid=(len(cut.slices), cut.splits),
        threads=LANES * cut.warps,
        shared_bytes=cut.shared_bytes,
        cluster=cut.cluster,
        work=work(cut, product, gpu),
    )
