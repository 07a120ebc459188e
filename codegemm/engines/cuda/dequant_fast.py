"""The dequantising kernel's fast form on a GPU: vectors of 4, 8 and 16 weights, groups of at least 16."""

from __future__ import annotations

from typing import Any

from codegemm import kernels_cu
from codegemm.engines.cuda import dequant_layout as layout
from codegemm.engines.cuda import rows
from codegemm.engines.cuda.dequant_cut import Cut, cut_for, work
from codegemm.engines.cuda.gpu import LANES, Gpu
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.steps import Launch, Scratch, Step, Structure, instance, structure
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Product

SOURCE = "dequant.cu"
ARGUMENTS = kernels_cu.structure(SOURCE, "Dequant")


def arrange(weight: CodebookWeight) -> Prepared:
    """Codes and scales in the order of fragments, centroids as they are."""
    arrays = {
        "codes": layout.arrange_codes(weight),
        "codebooks": weight.part_codebooks,
        "scales": layout.arrange_scales(weight),
    }
    return Prepared(weight.spec, weight.device, arrays)


def restore_codes(arranged: Any, spec: CodebookSpec) -> Any:
    """The weight's codes [M, K/v, m], of those that `arrange` made."""
    return layout.restore_codes(arranged, spec)


def arguments(spec: CodebookSpec, cut: Any, **others: int) -> Structure:
    """`ARGUMENTS` of a product cut so: what a cut of this form has, or else `others`."""
    group_steps = layout.group_steps(spec)
    return structure(
        ARGUMENTS,
        spec,
        cut,
        row_blocks=rows.row_blocks(spec),
        group_blocks=max(1, group_steps // layout.STEPS),
        padded_vectors=group_steps * layout.STEP,
        slices=rows.slices_argument(cut.slices),
        **others,
    )


def steps(product: Product[CodebookSpec], gpu: Gpu, scratch: Scratch) -> list[Step]:
    """One launch, cut as it is estimated to be fastest."""
    return [launch(product, cut_for(product.spec, product.n, gpu), gpu, scratch)]


def launch(product: Product[CodebookSpec], cut: Cut, gpu: Gpu, scratch: Scratch) -> Launch:
    """A product cut so."""
    spec, config = product.spec, product.spec.config
    values = (config.v, config.m, config.b, layout.phases(spec), cut.batch, product.dtype, cut.shared)
    return rows.split_launch(
        product,
        cut.partials,
        scratch,
        arguments(spec, cut),
        source=SOURCE,
        instance=instance("DequantShape", *values),
        grid=(len(cut.slices), cut.passes, cut.splits),
        threads=LANES * cut.warps,
        shared_bytes=cut.shared_bytes,
        cluster=cut.cluster,
        work=work(cut, product, gpu),
    )
