"""QuIP#'s randomised Hadamard transforms on a GPU: how one is cut into thread blocks, and what its launch takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.arrays import array_module
from codegemm.devices import to_host
from codegemm.engines.cuda.gpu import LANES, Gpu
from codegemm.engines.cuda.kernel import FLOAT32
from codegemm.engines.cuda.model import START, Work, balance
from codegemm.engines.cuda.steps import Array, Launch, Place, Table, instance, structure
from codegemm.formats.hadamard import hadamard, split_length
from codegemm.kernel import Product

SOURCE = "rotate.cu"
MAX_THREADS = 1024  # must match `most_threads` in rotate.cu
_ENOUGH = 32  # thread blocks, where length and rows allow it
_GROUP_SEGMENTS = 8  # that a group of threads mixes at least
# Clocks that nothing hides, at a start and until loads arrive that travel together, and instructions of a warp for an
# element of each of its threads.
_LOADS_LATENCY, _LOADS, _INSTRUCTIONS = 600.0, 8, 6.0
# `Rotation` in rotate.cu.
ARGUMENTS = np.dtype(
    [(name, np.uint64) for name in ("signs", "factors")]
    + [(name, np.int32) for name in ("segments", "segment", "groups", "log_length", "columns", "y_is_float")]
    + [(name, np.uint64) for name in ("scales", "rotated", "sums")],
    align=True,
)


@dataclass(frozen=True)
class Cut:
    """A length as segments: `order` of them, each `segment` numbers, mixed by `groups` groups of threads."""

    order: int
    segment: int
    groups: int

    @property
    def threads(self) -> int:
        """Of a block, whole warps."""
        return max(LANES, self.groups * self.segment)

    @property
    def shared_bytes(self) -> int:
        """Three words a thread and one a warp."""
        return 12 * self.threads + 4 * LANES


@cache
def cut_for(length: int, n: int) -> Cut:
    """For n rows: hadK segments or, where those are few or longer than a thread block, more; ValueError as
    split_length's.

    Every block reads its whole row, so more blocks than fill the GPU are no gain.
    """
    order, segment = split_length(length)
    while segment > MAX_THREADS or (order * n < _ENOUGH and segment > LANES):
        order, segment = 2 * order, segment // 2
    most = max(1, min(MAX_THREADS // segment, order // _GROUP_SEGMENTS))
    return Cut(order, segment, 1 << most.bit_length() - 1)


@cache
def signs(length: int, cut: Cut, transpose: bool) -> npt.NDArray[np.uint32]:
    """Where the matrix that mixes segments has -1, uint32 [order, groups, words]: bit i of a group is its i-th segment,
    group + i * groups."""
    matrix = hadamard(split_length(length)[0])
    matrix = matrix.T if transpose else matrix
    while len(matrix) < cut.order:
        matrix = np.kron(matrix, np.array([[1, 1], [1, -1]], np.int8))
    words = -(-cut.order // (LANES * cut.groups))
    negative = np.zeros((cut.order, words * LANES * cut.groups), np.uint8)
    negative[:, : cut.order] = matrix < 0
    bits = negative.reshape(cut.order, -1, cut.groups).swapaxes(1, 2)
    return np.packbits(np.ascontiguousarray(bits), axis=2, bitorder="little").view(np.uint32)


def factors(vector: Any) -> Any:
    """SU or SV as a transform takes it, where it is (NumPy's or CuPy's): over the root of its length, float32."""
    scaled = to_host(vector).astype(np.float64) / np.sqrt(len(vector))
    return array_module(vector).asarray(scaled.astype(np.float32))


def launch(side: str, product: Product, scales: Place, rotated: Place, sums: Place, gpu: Gpu) -> Launch:
    """The launch that rotates x into the workspace (side `in`), or the sums there into y (`out`).

    scales: float32 [n], powers of two of x's rows. rotated: float16 [n, columns, K]. sums: float32 [n, M]. The weight's
    array of the side's name has the `factors`.
    """
    inwards = side == "in"
    n, (m, k) = product.n, product.spec.shape
    length = k if inwards else m
    cut = cut_for(length, n)
    return Launch(
        SOURCE,
        instance(f"rotate_{side}", product.dtype),
        grid=(cut.order * n,),
        threads=cut.threads,
        shared_bytes=cut.shared_bytes,
        arguments=(
            structure(
                ARGUMENTS,
                cut,
                signs=Table(signs, (length, cut, inwards)),
                factors=Array(side),
                segments=cut.order,
                log_length=(length - 1).bit_length(),
                columns=rotated.shape[1],
                y_is_float=product.out_dtype == FLOAT32,
                scales=scales,
                rotated=rotated,
                sums=sums,
            ),
        ),
        work=work(length, cut, product, inwards, gpu),
    )


def work(length: int, cut: Cut, product: Product, inwards: bool, gpu: Gpu) -> Work:
    """What the launch has to do."""
    n = product.n
    mixed = n * cut.order * length
    return Work(
        bytes_read=4 * length + (product.x_bytes if inwards else 0),
        bytes_written=0 if inwards else product.y_bytes,
        l2_bytes=mixed * (4 + product.dtype.itemsize if inwards else 4),
        wavefronts=n * length / LANES * (cut.groups + 2 * max(0, cut.segment.bit_length() - 6)) + mixed / LANES,
        instructions=mixed / LANES * _INSTRUCTIONS,
        balance=balance(cut.order * n, gpu.multiprocessors),
        latency=START + -(-cut.order // (cut.groups * _LOADS)) * _LOADS_LATENCY,
    )
