"""Rows of W as thread blocks see them: blocks of 32, slices of those, and the workspace where splits of K meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from codegemm import kernels_cu
from codegemm.arrays import array_module
from codegemm.engines.cuda.gpu import LANES
from codegemm.engines.cuda.steps import COUNTER_BYTES, Launch, Scratch, Structure
from codegemm.formats.codebook import CodebookSpec
from codegemm.kernel import Product

SOURCE = "splits.cuh"
MAX_ROW_BLOCKS = COUNTER_BYTES // 4  # of splits: a counter each
MAX_PARTS = kernels_cu.constant(SOURCE, "most_parts")  # concatenated weights
SLICES = kernels_cu.structure(SOURCE, "Slices")
_IN_FLIGHT = kernels_cu.constant(SOURCE, "in_flight")  # loads of a lane when it adds splits
_JOIN_GROUPS = 4  # of eight lanes of a warp then
_SENT_COUNTER = kernels_cu.constant(SOURCE, "counter_bytes")

# (part, first block of 32 rows, end block, first row of y, end row of y): `Slice` in splits.cuh.
Slice = tuple[int, int, int, int, int]


class Part(NamedTuple):
    """A part's slices, near-equal ones, the larger first: `Part` in splits.cuh."""

    first_slice: int
    first_block: int
    first_row: int
    blocks: int = 0  # of 32 rows, of the smaller slices
    larger: int = 0  # how many slices have one more


@dataclass(frozen=True)
class Slices:
    """All slices, told by their parts, since a matrix may have millions; the last part is what comes behind them."""

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return self.parts[-1].first_slice

    def __iter__(self) -> Iterator[Slice]:
        for number, (part, behind) in enumerate(itertools.pairwise(self.parts)):
            block = part.first_block
            for place in range(behind.first_slice - part.first_slice):
                end = block + part.blocks + (place < part.larger)
                row = part.first_row + (block - part.first_block) * LANES
                yield number, block, end, row, behind.first_row
                block = end

    @property
    def most_blocks(self) -> int:
        """Blocks of 32 rows of the largest."""
        return max(part.blocks + (part.larger > 0) for part in self.parts)


def part_blocks(spec: CodebookSpec) -> list[int]:
    """Blocks of 32 rows of each part, the last of a part filled up."""
    return [-(-rows // LANES) for rows in spec.part_rows]


def row_blocks(spec: CodebookSpec) -> int:
    """Blocks of 32 rows of all parts."""
    return sum(part_blocks(spec))


def pad_rows(spec: CodebookSpec, array: Any) -> Any:
    """[M, ...] with every part filled up to whole blocks of 32 rows by repeating its last row."""
    if all(rows % LANES == 0 for rows in spec.part_rows):
        return array
    starts = np.cumsum([0, *spec.part_rows])
    index = [
        np.minimum(np.arange(LANES * blocks), rows - 1) + start
        for blocks, rows, start in zip(part_blocks(spec), spec.part_rows, starts)
    ]
    return array[array_module(array).asarray(np.concatenate(index))]


def unpad_rows(spec: CodebookSpec, array: Any) -> Any:
    """The inverse of `pad_rows`: [M, ...] without what parts were filled up by."""
    if len(array) == spec.out_features:
        return array
    starts = LANES * np.cumsum([0, *part_blocks(spec)])
    index = [np.arange(rows) + start for rows, start in zip(spec.part_rows, starts)]
    return array[array_module(array).asarray(np.concatenate(index))]


def slices(spec: CodebookSpec, most_blocks: int) -> Slices:
    """Near-equal slices of at most `most_blocks` blocks of 32 rows, none across parts, a part's larger ones first."""
    parts, place, block, row = [], 0, 0, 0
    for blocks, rows in zip(part_blocks(spec), spec.part_rows):
        count = -(-blocks // most_blocks)
        parts.append(Part(place, block, row, blocks // count, blocks % count))
        place, block, row = place + count, block + blocks, row + rows
    return Slices((*parts, Part(place, block, row)))


def slices_argument(pieces: Slices) -> npt.NDArray:
    """Slices as kernels take them."""
    rows = [*pieces.parts, *[pieces.parts[-1]] * (MAX_PARTS + 1 - len(pieces.parts))]
    return np.array((list(map(tuple, rows)),), SLICES)


def too_many_parts(spec: CodebookSpec) -> str | None:
    """Why kernels that take slices refuse a weight, or None."""
    count = len(spec.part_rows)
    return None if count <= MAX_PARTS else f"{count} concatenated parts: it takes up to {MAX_PARTS}"


def join_trips(splits: int, n: int, blocks: int) -> int:
    """Round trips to L2, one after the other, of the warp that adds the splits of `blocks` blocks of rows and n rows of
    x: `Splits::finish` and `add` in splits.cuh."""
    if splits == 1:
        return 0
    items = 1 if splits > _IN_FLIGHT // 2 else 2 if splits > _IN_FLIGHT // 4 else 4
    together = min(_JOIN_GROUPS, 1 << (blocks - 1).bit_length())  # blocks of rows
    rows = _JOIN_GROUPS // together * items  # of x
    return -(-blocks // together) * -(-n // rows) * -(-splits // (_IN_FLIGHT // items))


def sum_bytes(splits: int, n: int, blocks: int) -> int:
    """Of partial sums, written and read."""
    return 0 if splits == 1 else 8 * splits * n * LANES * blocks


def received_bytes(batch: int, blocks: int, cluster: int) -> int:
    """Of shared memory, for what the thread blocks of a cluster send to one of them: sums of up to `batch` rows of x
    and of a slice of `blocks` blocks of 32 rows, and their counter (`Cluster` in splits.cuh)."""
    return _SENT_COUNTER + 4 * batch * LANES * -(-blocks // cluster) * cluster if cluster > 1 else 0


def container_bits(b: int) -> int:
    """Bits that hold a code: 2, 4, 8 or 16."""
    return 2 if b <= 2 else 4 if b <= 4 else 8 if b <= 8 else 16


def packed(fields: Any, bits: int) -> Any:
    """uint8 [..., field, byte] -> [..., byte], of which field i begins at bit i * bits."""
    found = fields[..., 0, :]
    for field in range(1, 8 // bits):
        found = found | fields[..., field, :] << field * bits
    return found


def unpacked(found: Any, bits: int) -> Any:
    """The inverse of `packed`: uint8 [..., byte] -> [..., field, byte]."""
    shifts = array_module(found).asarray(np.arange(0, 8, bits, dtype=np.uint8)[:, None])
    return found[..., None, :] >> shifts & (1 << bits) - 1


def code_type(spec: CodebookSpec) -> str:
    """The kernels' name of a code's type as formats have it."""
    return f"u{8 * spec.code_bytes}"


def split_launch(
    product: Product[Any],
    splits: int,
    scratch: Scratch,
    arguments: Structure,
    *,
    padded_rows: int | None = None,
    **launch: Any,
) -> Launch:
    """A launch whose splits of K, or clusters of them, meet in the workspace as splits.cuh has it: partial sums right
    behind the counters, so that they must be taken first (ValueError). Before the kernel's structure come x's rows and
    whether y is float32. padded_rows: of W; those of the parts' blocks unless given.
    """
    if splits > 1:
        padded_rows = LANES * row_blocks(product.spec) if padded_rows is None else padded_rows
        place = scratch.take("partial sums", (splits, product.n, padded_rows), np.float32)
        if place.start != COUNTER_BYTES:
            raise ValueError(f"partial sums at {place.start}: they must be the first that is taken of a workspace")
    numbers = np.int32(product.n), np.int32(product.out_dtype == np.float32)
    return Launch(arguments=(*numbers, arguments), **launch)
