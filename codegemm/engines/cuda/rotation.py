"""The randomised Hadamard transforms of QuIP# and QTIP on a GPU: how one is cut into thread blocks, and its launch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from codegemm import kernels_cu
from codegemm.engines.cuda.gpu import LANES, Gpu
from codegemm.engines.cuda.kernel import FLOAT32
from codegemm.engines.cuda.model import START, Work, balance
from codegemm.engines.cuda.steps import Array, Launch, Place, Table, instance, structure
from codegemm.formats.hadamard import hadamard, split_length
from codegemm.kernel import Product

SOURCE = "rotate.cu"
MAX_THREADS = kernels_cu.constant(SOURCE, "most_threads")
EACH = kernels_cu.constant(SOURCE, "each")  # numbers of a thread
DIGIT_UNIT = {3: 2.0**-21, 4: 2.0**-29}  # of a row's scale, where a number becomes so many digits of base 256
FP16_UNIT = 2.0**-14  # where it becomes one of fp16
_ENOUGH = 32  # thread blocks, where length and rows allow it
_MAX_SEGMENT = 1024
_GROUP_SEGMENTS = 4  # that a group of threads mixes at least
# Clocks that nothing hides, at a start and until loads arrive that travel together, and instructions of a warp for an
# element of each of its threads.
_LOADS_LATENCY, _LOADS, _INSTRUCTIONS = 600.0, 4, 10.0
ARGUMENTS = kernels_cu.structure(SOURCE, "Rotation")


@dataclass(frozen=True)
class Cut:
    """A length as segments: `order` of them, each `segment` numbers, mixed by `groups` groups of threads."""

    order: int
    segment: int
    groups: int

    @property
    def threads(self) -> int:
        """Of a block, whole warps."""
        return max(LANES, self.groups * self.segment // EACH)

    @property
    def shared_bytes(self) -> int:
        """Three words a number and one a warp."""
        return 12 * EACH * self.threads + 4 * LANES


@cache
def cut_for(length: int, n: int) -> Cut:
    """For n rows: hadK segments or, where those are few or longer than a thread block, more; ValueError as
    split_length's.

    Every block reads its whole row, so more blocks than fill the GPU are no gain.
    """
    order, segment = split_length(length)
    while segment > _MAX_SEGMENT or (order * n < _ENOUGH and segment > LANES):
        order, segment = 2 * order, segment // 2
    most = max(1, min(MAX_THREADS * EACH // segment, order // _GROUP_SEGMENTS))
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


def launch(
    side: str, product: Product, scales: Place, rotated: Place, sums: Place, gpu: Gpu, pairs: bool = False
) -> Launch:
    """The launch that rotates x into the workspace (side `in`), or the sums there into y (`out`).

    scales: float32 [n], powers of two of x's rows. rotated: int8 [n, digits, K], or float16 [n, K] or [n, 2, K], whose
    second half is what the first leaves. sums: float32 [n, M]. pairs: whether float16 are in the order that pairs of
    neighbours take. The weight's array of the side's name is SU or SV.
    """
    inwards = side == "in"
    n, (m, k) = product.n, product.spec.shape
    length = k if inwards else m
    digits = rotated.shape[1] if rotated.dtype == np.int8 else 0
    bits = product.spec.vector_bits[0 if inwards else 1]
    cut = cut_for(length, n)
    return Launch(
        SOURCE,
        instance(f"rotate_{side}", product.dtype, np.dtype(f"float{bits}")),
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
                digits=digits,
                halves=rotated.shape[1] if len(rotated.shape) == 3 else 1,
                pairs=pairs,
                root=length**-0.5 * (1 if inwards or digits else FP16_UNIT),
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
    vector = product.spec.vector_bits[0 if inwards else 1] // 8
    return Work(
        bytes_read=vector * length + (product.x_bytes if inwards else 0),
        bytes_written=0 if inwards else product.y_bytes,
        l2_bytes=mixed * (vector + product.dtype.itemsize if inwards else 4),
        wavefronts=n * length / LANES * (2 * cut.groups + 2 * max(0, cut.segment.bit_length() - 8)) + mixed / LANES,
        instructions=mixed / LANES * _INSTRUCTIONS,
        balance=balance(cut.order * n, gpu.multiprocessors),
        latency=START + -(-cut.order // (cut.groups * _LOADS)) * _LOADS_LATENCY,
    )
