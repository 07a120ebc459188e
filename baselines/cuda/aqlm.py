"""AQLM's GPU kernels (Egiazarian et al., 2024): a warp a row, centroids fetched from shared memory or L2.

Facts of the original kept here: one row of x at a time, sums of a k-vector in fp16, the choice of rows per block, and a
dense product of the dequantised matrix from 7 rows of x on. A batch of up to 6 is one launch here, not one a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from codegemm import kernels_cu
from codegemm.arrays import array_module
from codegemm.engines.cuda.dequant_dense import DequantDense
from codegemm.engines.cuda.gpu import LANES, Gpu
from codegemm.engines.cuda.kernel import FLOAT32, CudaKernel
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.model import START, Work, balance
from codegemm.engines.cuda.rows import code_type
from codegemm.engines.cuda.steps import Array, Launch, Scratch, Step, instance, structure
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Product

MATVEC_ROWS = 6
SOURCE = "aqlm.cu"
MAX_ROWS = kernels_cu.constant(SOURCE, "most_threads") // LANES  # of W in a block, a warp each
COPIES = kernels_cu.constant(SOURCE, "copies")  # of a codebook in shared memory
PIECE = 8  # fp16 in 16 bytes
ARGUMENTS = kernels_cu.structure(SOURCE, "Aqlm")
# Counted in the compiled loops, for 16 bytes of 32 centroids; clocks that nothing hides, as for the Psumbook's tiles.
_INSTRUCTIONS = 13.0
_CHUNK_LATENCY = 700.0
_SECTOR = 32  # bytes that L2 gives for one centroid of 16


class Aqlm(CudaKernel[CodebookSpec, CodebookWeight]):
    """AQLM's 1x16 and Kx8 matrix-vector products, k-vectors of 8 or 16; more than 6 rows of x as `dequant_dense`.

    In the matrix-vector product x is rounded to fp16, so that what is beyond 65504 becomes infinite, and up to eight
    terms are added in fp16: the error is below 1e-3 of the result's norm, more where products are below fp16's normal
    numbers, 6e-5.
    """

    name = "aqlm"
    weights = CodebookWeight
    few_rows = MATVEC_ROWS

    def __init__(self, many_rows: DequantDense | None = None) -> None:
        self.many_rows = many_rows or DequantDense()

    def unfit_for(self, product: Product[CodebookSpec], gpu: Gpu) -> str | None:
        spec, config = product.spec, product.spec.config
        if config.g != -1:
            return f"g={config.g}: AQLM has one scale a row, g=-1"
        if len(spec.part_rows) > 1:
            return f"{len(spec.part_rows)} concatenated parts: AQLM has one set of codebooks"
        if config.v not in (8, 16):
            return f"v={config.v}: AQLM's kernels read centroids of 8 or 16 weights"
        if config.v == 16 and config.m > 1:
            return f"m={config.m}, v=16: AQLM's kernel for centroids of 16 weights has one codebook"
        if shared_bytes(spec) > gpu.shared_per_block:
            return (
                f"m={config.m}, b={config.b}: its codebooks, {COPIES} times, need {shared_bytes(spec)} bytes of "
                f"shared memory; a thread block has {gpu.shared_per_block}"
            )
        return self.many_rows.unfit_for(product, gpu) if product.n > MATVEC_ROWS else None

    def tolerance(self, product: Product[CodebookSpec]) -> float:
        return 3e-3

    def arrange(self, weight: CodebookWeight) -> Prepared:
        prepared = self.many_rows.arrange(weight)
        prepared.arrays["lanes"] = arrange_codes(weight)
        return prepared

    def steps(self, product: Product[CodebookSpec], gpu: Gpu, scratch: Scratch) -> list[Step]:
        return [_matvec(product, gpu)] if product.n <= MATVEC_ROWS else self.many_rows.steps(product, gpu, scratch)


def _matvec(product: Product[CodebookSpec], gpu: Gpu) -> Launch:
    spec, config, n = product.spec, product.spec.config, product.n
    rows = rows_per_block(spec.out_features, n, gpu.multiprocessors)
    blocks = n * -(-spec.out_features // rows)
    pieces = config.v // PIECE
    lookups = n * spec.out_features * spec.vectors * config.m
    fetched = lookups * pieces  # 16 bytes each
    again = (n - 1) * code_bytes(spec) if code_bytes(spec) <= gpu.l2_bytes else 0
    shared = in_shared_memory(spec)
    staged = blocks * (config.m * config.centroids * pieces * COPIES if shared else 0)
    return Launch(
        SOURCE,
        instance("aqlm", config.v, config.m, code_type(spec), product.dtype),
        grid=(-(-spec.out_features // rows), n),
        threads=LANES * rows,
        shared_bytes=shared_bytes(spec),
        arguments=(
            np.int32(product.out_dtype == FLOAT32),
            structure(ARGUMENTS, spec, config, codes=Array("lanes"), row_lanes=row_lanes(spec)),
        ),
        work=Work(
            # Every row of x reads all codes.
            bytes_read=n * (code_bytes(spec) + 2 * spec.out_features) + product.x_bytes
            + 2 * config.m * config.v * config.centroids,
            bytes_written=product.y_bytes,
            cached_bytes=again,
            l2_bytes=again + blocks * spec.in_features * product.dtype.itemsize
            + (staged * 16 / COPIES if shared else fetched * _SECTOR),
            wavefronts=((fetched if shared else 0) + fetched / config.m + staged) / PIECE
            + (n * code_bytes(spec) + 2 * blocks * spec.in_features) / 128,
            instructions=fetched / LANES * _INSTRUCTIONS,
            balance=balance(blocks, gpu.multiprocessors),
            latency=START + -(-row_lanes(spec) // LANES) * _CHUNK_LATENCY,
            multiply_adds=product.multiply_adds,
        ),
    )  # fmt: skip


def rows_per_block(rows: int, n: int, multiprocessors: int) -> int:
    """Rows of W in a thread block, for n rows of x.

    Blocks of 16 rows would take so many waves of multiprocessors; of fewer rows as many blocks as fill them.
    """
    waves = -(-n * -(-rows // MAX_ROWS) // multiprocessors)
    return -(-rows // (waves * multiprocessors // n))


def in_shared_memory(spec: CodebookSpec) -> bool:
    """Whether centroids come from there, or from L2."""
    return spec.config.b <= 8


def lane_vectors(spec: CodebookSpec) -> int:
    """k-vectors of a lane in a chunk: their codes are whole loads of 16 bytes."""
    return 16 if spec.config.m * spec.code_bytes % 2 else 8


def row_lanes(spec: CodebookSpec) -> int:
    """Lanes that a row's k-vectors fill, over all chunks."""
    return -(-spec.vectors // lane_vectors(spec))


def code_bytes(spec: CodebookSpec) -> int:
    """Of all codes as they are stored."""
    return spec.out_features * row_lanes(spec) * lane_vectors(spec) * spec.config.m * spec.code_bytes


def shared_bytes(spec: CodebookSpec) -> int:
    """Codebooks and a chunk of x, which has 16 bytes of padding for every lane."""
    pieces = spec.config.v // PIECE
    codebooks = COPIES * 16 * spec.config.m * spec.config.centroids * pieces if in_shared_memory(spec) else 0
    return codebooks + LANES * (lane_vectors(spec) * pieces + 1) * 16


def arrange_codes(weight: CodebookWeight) -> Any:
    """uint32 [M, words] in the order of aqlm.cu, the last lane of a row filled up by code 0."""
    codes, spec = weight.codes, weight.spec
    xp = array_module(codes)
    rows, filled = spec.out_features, row_lanes(spec)
    padded = xp.zeros((rows, filled * lane_vectors(spec), spec.config.m), codes.dtype)
    padded[:, : spec.vectors] = codes
    lanes = padded.reshape(rows, filled, -1).view(np.uint32)  # [M, lane, words]
    words = lanes.shape[2]
    arranged = xp.zeros((rows, filled * words), np.uint32)
    for first in range(0, filled, LANES):
        chunk = lanes[:, first : first + LANES]
        loads = chunk.reshape(rows, -1, words // 4, 4).transpose(0, 2, 1, 3)
        arranged[:, first * words : (first + LANES) * words] = loads.reshape(rows, -1)
    return arranged
