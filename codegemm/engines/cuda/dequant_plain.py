"""The dequantising kernel's plain form on a GPU: whatever the fast form does not multiply."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from codegemm import kernels_cu
from codegemm.arrays import array_module
from codegemm.engines.cuda import rows
from codegemm.engines.cuda.dequant_cut import book_and_scale_bytes
from codegemm.engines.cuda.gpu import LANES, Gpu
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.model import Work, balance
from codegemm.engines.cuda.steps import Scratch, Step, instance, structure
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Product

SOURCE = "dequant_plain.cu"
BATCHES = (1, 4, 16, 64)  # rows of x that a compiled kernel multiplies
WARPS = kernels_cu.constant(SOURCE, "most_threads") // LANES
_TURNS = 4  # k-vectors that a warp has at least
_BLOCKS = 4  # thread blocks of a multiprocessor
_LATENCY = 2600.0  # clocks that nothing hides: a start, codes and then centroids, the sums of the warps
ARGUMENTS = kernels_cu.structure(SOURCE, "DequantPlain")


@dataclass(frozen=True)
class Cut:
    """A launch: a thread block for every 32 rows and split of K."""

    batch: int
    splits: int
    split_vectors: int


@lru_cache(maxsize=1024)
def cut_for(spec: CodebookSpec, n: int, gpu: Gpu) -> Cut:
    """As many splits of K as fill the GPU, each with some k-vectors for every warp."""
    blocks = rows.row_blocks(spec)
    wanted = _BLOCKS * gpu.multiprocessors // blocks if blocks <= rows.MAX_ROW_BLOCKS else 1
    splits = max(1, min(wanted, spec.vectors // (WARPS * _TURNS)))
    per_split = -(-spec.vectors // splits)
    return Cut(next(batch for batch in BATCHES if batch >= n), -(-spec.vectors // per_split), per_split)


def arrange(weight: CodebookWeight) -> Prepared:
    """Codes [k-vector][codebook][padded row], scales [group][padded row]."""
    spec = weight.spec
    codes = rows.pad_rows(spec, weight.codes).transpose(1, 2, 0)
    scales = rows.pad_rows(spec, weight.scales).swapaxes(0, 1)
    xp = array_module(codes)
    arrays = {
        "codes": xp.ascontiguousarray(codes),
        "codebooks": weight.part_codebooks,
        "scales": xp.ascontiguousarray(scales),
    }
    return Prepared(spec, weight.device, arrays)


def restore_codes(arranged: Any, spec: CodebookSpec) -> Any:
    """The weight's codes [M, K/v, m], of those that `arrange` made."""
    return rows.unpad_rows(spec, arranged.transpose(2, 0, 1))


def steps(product: Product[CodebookSpec], gpu: Gpu, scratch: Scratch) -> list[Step]:
    """One launch."""
    spec, config = product.spec, product.spec.config
    cut, pieces = cut_for(spec, product.n, gpu), rows.slices(product.spec, 1)
    arguments = structure(
        ARGUMENTS,
        spec,
        config,
        cut,
        row_blocks=rows.row_blocks(spec),
        codebooks_count=config.m,
        slices=rows.slices_argument(pieces),
    )
    launch = rows.split_launch(
        product,
        cut.splits,
        scratch,
        arguments,
        source=SOURCE,
        instance=instance("dequant_plain", config.v, rows.code_type(spec), cut.batch, product.dtype),
        grid=(len(pieces), cut.splits),
        threads=LANES * WARPS,
        shared_bytes=4 * WARPS * cut.batch * LANES,
        work=work(cut, product, gpu),
    )
    return [launch]


def work(cut: Cut, product: Product[CodebookSpec], gpu: Gpu) -> Work:
    """What a product's launch has to do."""
    spec, n, blocks = product.spec, product.n, rows.row_blocks(product.spec)
    v, m = spec.config.v, spec.config.m
    decoded = blocks * spec.vectors  # of 32 k-vectors
    return Work(
        bytes_read=decoded * m * LANES * spec.code_bytes + book_and_scale_bytes(spec)
        + product.x_bytes,
        bytes_written=product.y_bytes,
        l2_bytes=decoded * 32 * 2 * v * m + rows.sum_bytes(cut.splits, n, blocks),
        instructions=decoded * (m * (4 + 3 * v) + 3 * v * n + 20),
        balance=balance(blocks * cut.splits, gpu.multiprocessors),
        latency=_LATENCY + gpu.round_trip * rows.join_trips(cut.splits, n, 1),
        multiply_adds=product.multiply_adds,
    )  # fmt: skip
