"""The dequantising kernel's form for Hopper: 33 to 128 rows of x in one pass over W."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from codegemm import kernels_cu
from codegemm.engines.cuda import dequant_layout as layout
from codegemm.engines.cuda import rows
from codegemm.engines.cuda.dequant_fast import arguments
from codegemm.engines.cuda.dequant_wide_cut import Cut, cut_for, works, x_bytes
from codegemm.engines.cuda.gpu import LANES, Gpu
from codegemm.engines.cuda.steps import Launch, Scratch, Step, instance
from codegemm.formats.codebook import CodebookSpec
from codegemm.kernel import Product

SOURCE, X_SOURCE = "dequant_wide.cu", "dequant_wide_x.cu"
X_WARPS = kernels_cu.constant(X_SOURCE, "most_threads") // LANES


def steps(product: Product[CodebookSpec], gpu: Gpu, scratch: Scratch) -> list[Step]:
    """Cut as it is estimated to be fastest."""
    return launches(product, cut_for(product.spec, product.n, gpu), gpu, scratch)


def launches(product: Product[CodebookSpec], cut: Cut, gpu: Gpu, scratch: Scratch) -> list[Step]:
    """A product cut so, of a weight that `dequant_fast` has arranged: a launch that arranges x, and one that
    multiplies."""
    spec, config = product.spec, product.spec.config
    work_on_x, work = works(cut, product, gpu)
    multiplying = rows.split_launch(
        product,
        cut.partials,
        scratch,
        arguments(spec, cut),
        source=SOURCE,
        instance=instance(
            "WideShape", config.v, config.m, config.b, layout.phases(spec), cut.batch, product.dtype, cut.chains
        ),
        grid=(len(cut.slices), 1, cut.splits),
        threads=LANES * cut.warps,
        shared_bytes=cut.shared_bytes,
        cluster=cut.cluster,
        work=work,
    )
    x = scratch.take("x", (cut.k_blocks, x_bytes(spec, cut.batch, product.dtype)), np.uint8)
    arranging = Launch(
        X_SOURCE,
        instance("WideX", config.v, cut.batch, product.dtype),
        grid=(-(-cut.k_blocks * cut.batch // (8 * X_WARPS)),),
        threads=LANES * X_WARPS,
        shared_bytes=0,
        arguments=multiplying.arguments,
        work=work_on_x,
        y=x,
    )
    return [arranging, replace(multiplying, x=x)]
