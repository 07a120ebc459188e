"""QTIP's GPU kernels (Tseng et al., 2024): rotate x, decode trellis codes into tensor cores, rotate the result.

Facts of the original kept here: the grid of one thread block a multiprocessor, the split of K over its warps, codes in
the order of its files, a table that all banks of shared memory have, states from a lane's own bits and its neighbour's.
Better than there: up to 8 rows of x are multiplied together, each as two fp16, where the original has a single row, as
one; more rows go eight at a time until rebuilding the matrix is faster.
"""

from __future__ import annotations

import numpy as np

from codegemm import kernels_cu
from codegemm.baselines.cuda.incoherent import IncoherentKernel
from codegemm.engines import limits
from codegemm.engines.cuda.gpu import LANES, Gpu
from codegemm.engines.cuda.launch import Prepared
from codegemm.engines.cuda.model import Work, balance
from codegemm.engines.cuda.steps import Launch, Place, Structure, instance, structure
from codegemm.formats.qtip import QtipSpec, QtipWeight
from codegemm.kernel import Product

SOURCE = "qtip.cu"
ROWS = kernels_cu.constant(SOURCE, "most_rows")  # of x, whose products read the codes once
# Rows of x beyond which the core is rebuilt: making, writing and reading it takes as long as so many rows, eight at a
# time, by counts of instructions and bytes on an H200 (265 clocks for 1024 weights, and 39 for eight rows).
MATVEC_ROWS = 48
SIDE = kernels_cu.constant(SOURCE, "block_side")  # rows and columns of 2 x 2 tiles
MAX_WARPS = kernels_cu.constant(SOURCE, "most_threads") // LANES
_TABLE_BYTES = kernels_cu.constant(SOURCE, "table_bytes")
_PAIRS = SIDE * SIDE // 2 // LANES  # of a lane in 2 x 2 tiles
# For 32 x 32 weights, by bits and groups of rows of x, counted in the compiled loops.
_INSTRUCTIONS = {(2, 1): 140.0, (2, 2): 156.0, (3, 1): 154.0, (3, 2): 171.0, (4, 1): 142.0, (4, 2): 158.0}
_DENSE_INSTRUCTIONS = {2: 171.0, 3: 191.0, 4: 175.0}
_STRIP_LATENCY = 500.0  # clocks of the barriers and sums behind a strip: guessed
ARGUMENTS = kernels_cu.structure(SOURCE, "Qtip")


class Qtip(IncoherentKernel[QtipSpec, QtipWeight]):
    """Trellis codes of 2, 3 and 4 bit and every Hadamard matrix; many rows of x by slices of the core and cuBLAS.

    Rotated x is two fp16 times a power of two for each row: the error is that of float32. Beyond 48 rows it is one
    fp16, about 2e-4 of the result's norm.
    """

    name = "qtip"
    weights = QtipWeight
    few_rows, strip_rows, pairs = MATVEC_ROWS, SIDE, True

    def unfit_for(self, product: Product[QtipSpec], gpu: Gpu) -> str | None:
        spec, n = product.spec, product.n
        reason = limits.too_many("words of codes", spec.bits * spec.out_features * spec.in_features // 32)
        rotated = n * 4 * spec.in_features if n <= MATVEC_ROWS else 0
        return reason or limits.too_many("bytes of rotated x", rotated)

    def arrange(self, weight: QtipWeight) -> Prepared:
        arrays = {"codes": weight.trellis, "table": weight.tlut, "in": weight.SU, "out": weight.SV}
        return Prepared(weight.spec, weight.device, arrays)

    def parts(self, n: int) -> tuple[int, type[np.number]]:
        return 2, np.float16

    def matvec(self, product: Product[QtipSpec], rotated: Place, sums: Place, gpu: Gpu) -> Launch:
        spec, n, m = product.spec, product.n, product.spec.out_features
        turns, grid, count = -(-n // ROWS), self.blocks(spec, gpu), warps(spec)
        codes, steps = _counts(spec)
        again = (turns - 1) * codes if codes <= gpu.l2_bytes else 0
        x_bytes = 16 * LANES * groups(n) * turns * steps
        return Launch(
            SOURCE,
            instance("qtip", spec.bits, groups(n)),
            grid=(grid, turns),
            threads=LANES * count,
            shared_bytes=shared_bytes(n, count),
            arguments=(_arguments(product, 0, m // SIDE, rotated=rotated, sums=sums),),
            work=Work(
                bytes_read=turns * codes,
                cached_bytes=again,
                l2_bytes=x_bytes + again,
                wavefronts=turns * (steps * _PAIRS + codes / 128) + x_bytes / 128,
                instructions=turns * steps * _INSTRUCTIONS[spec.bits, groups(n)],
                mma=turns * steps * 4 * groups(n),
                balance=balance(m // SIDE, gpu.multiprocessors),
                latency=turns * -(-m // SIDE // grid) * _STRIP_LATENCY,
                multiply_adds=product.multiply_adds,
            ),
        )

    def dequantize(self, product: Product[QtipSpec], first: int, end: int, dense: Place, gpu: Gpu) -> Launch:
        spec = product.spec
        share = (end - first) * SIDE / spec.out_features
        codes, steps = (share * count for count in _counts(spec))
        return Launch(
            SOURCE,
            instance("dequantize_qtip", spec.bits),
            grid=(min(gpu.multiprocessors, -(-(end - first) * spec.in_features // (SIDE * MAX_WARPS))),),
            threads=LANES * MAX_WARPS,
            shared_bytes=_TABLE_BYTES,
            arguments=(_arguments(product, first, end - first, dense=dense),),
            work=Work(
                bytes_read=codes,
                bytes_written=dense.nbytes,
                wavefronts=steps * _PAIRS + (codes + dense.nbytes) / 128,
                instructions=steps * _DENSE_INSTRUCTIONS[spec.bits],
            ),
        )


def _arguments(product: Product[QtipSpec], first_strip: int, count: int, **places: Place) -> Structure:
    """A launch's structure for strips of 32 rows, null for places that it doesn't use."""
    return structure(
        ARGUMENTS,
        first_strip=first_strip,
        strips=count,
        steps=product.spec.in_features // SIDE,
        batch=product.n,
        **{"rotated": 0, "sums": 0, "dense": 0} | places,
    )


def _counts(spec: QtipSpec) -> tuple[int, int]:
    """Bytes of the codes, steps of 32 x 32 weights."""
    m, k = spec.shape
    return spec.bits * m * k // 8, m // SIDE * k // SIDE


def groups(n: int) -> int:
    """Of eight columns, that x takes: both fp16 of four rows each."""
    return 1 if n <= ROWS // 2 else 2


def warps(spec: QtipSpec) -> int:
    """Of a block: one a step of K, as many as there are."""
    return min(MAX_WARPS, spec.in_features // SIDE)


def shared_bytes(n: int, count: int) -> int:
    """The table and the partial sums of `count` warps."""
    return _TABLE_BYTES + 4 * count * SIDE * min(n, ROWS)
