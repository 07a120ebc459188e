"""A bias on a GPU: one more launch behind a kernel's steps, whose sums wait in the workspace until it is added."""

from __future__ import annotations

from dataclasses import replace

from codegemm import kernels_cu
from codegemm.engines.cuda.gpu import LANES
from codegemm.engines.cuda.model import START, Work
from codegemm.engines.cuda.steps import Launch, Place, Scratch, Step, instance, structure
from codegemm.kernel import Product

SOURCE = "bias.cu"
THREADS = kernels_cu.constant(SOURCE, "most_threads")
ARGUMENTS = kernels_cu.structure(SOURCE, "AddBias")


def with_bias(steps: list[Step], product: Product, scratch: Scratch) -> list[Step]:
    """The steps of a product with y in float32, and a bias behind them, for a product with y as it is to be."""
    sums = scratch.take("y before the bias", (product.n, product.spec.out_features), "float32")
    return [*(replace(step, y=step.y or sums) for step in steps), _launch(product, sums)]


def _launch(product: Product, sums: Place) -> Launch:
    n, rows = sums.shape
    return Launch(
        SOURCE,
        instance("add_bias", product.dtype),
        grid=(-(-rows // THREADS) * n,),
        threads=THREADS,
        shared_bytes=0,
        arguments=(structure(ARGUMENTS, rows=rows, y_is_float=product.out_dtype == sums.dtype, sums=sums),),
        work=Work(
            bytes_read=4 * rows,
            bytes_written=product.y_bytes,
            l2_bytes=sums.nbytes,
            instructions=n * rows / LANES * 20,
            latency=START,
        ),
        takes_bias=True,
    )
