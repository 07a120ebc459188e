"""The order in which the Psumbook kernel reads codes, scales and centroids; `kernels_cu/psumbook_layout.cuh` says why.

Everything works on NumPy and on CuPy arrays alike: a weight on a GPU is arranged there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from codegemm.arrays import array_module
from codegemm.engines import limits
from codegemm.engines.cuda.gpu import LANES
from codegemm.engines.cuda.rows import container_bits, packed, pad_rows, row_blocks, unpacked, unpad_rows
from codegemm.formats.codebook import CodebookSpec, CodebookWeight

POSITIONS = 32  # k-vectors in a position row
MAX_PHASE_CHUNK = 8  # scales that a lane loads at once
_QUARTER = 4  # components that a lane holds for the tensor cores


def block_bytes(b: int) -> int:
    """Bytes of the codes of 32 rows in a position row."""
    return LANES * POSITIONS * container_bits(b) // 8


def k_blocks(spec: CodebookSpec) -> int:
    """Blocks of 32 k-vectors, the last filled up."""
    return -(-spec.vectors // POSITIONS)


def position_rows(spec: CodebookSpec) -> int:
    """Position rows as stored: an even number, so that two can always be read together."""
    return k_blocks(spec) * spec.config.m + k_blocks(spec) * spec.config.m % 2


def phases(spec: CodebookSpec) -> int:
    """Scales of a row in a block of 32 k-vectors; 0 where the whole row has one."""
    return 0 if spec.groups == 1 else POSITIONS // math.gcd(POSITIONS, spec.group_vectors)


def scale_shift(spec: CodebookSpec) -> int:
    """log2 of the k blocks for which a scale is stored once."""
    if phases(spec) != 1:
        return 0
    blocks = spec.group_vectors // POSITIONS
    return (blocks & -blocks).bit_length() - 1


def stored_scales(spec: CodebookSpec) -> int:
    """Scales stored for a row: one, or those of every phase of every k block that a position row belongs to."""
    blocks = -(-position_rows(spec) // spec.config.m)
    return -(-blocks // (1 << scale_shift(spec))) * phases(spec) or 1


def too_many_loads(spec: CodebookSpec) -> str | None:
    """Why kernels that read this order refuse a weight, or None."""
    blocks = row_blocks(spec)
    codes = position_rows(spec) * blocks * block_bytes(spec.config.b) // _chunk_bytes(spec.config.b)
    scales = stored_scales(spec) * blocks * LANES // min(max(phases(spec), 1), MAX_PHASE_CHUNK)
    return limits.too_many("loads of codes", codes) or limits.too_many("loads of scales", scales)


def positions(phase_count: int) -> np.ndarray:
    """[lane, step]: the k-vector of a block that a lane looks up at a step; 32 different ones at every step."""
    length = POSITIONS // max(phase_count, 1)
    lane, step = np.arange(LANES)[:, None], np.arange(POSITIONS)
    turn = (lane // length + step // length) % (POSITIONS // length)
    return turn * length + (lane + step) % length


def arrange_codes(weight: CodebookWeight) -> Any:
    """uint8 [position row][block of 32 rows][chunk][lane][bytes of a lane's load]."""
    spec, config, codes = weight.spec, weight.config, weight.codes
    xp = array_module(codes)
    codes = pad_rows(spec, codes)
    blocks, k = len(codes) // LANES, k_blocks(spec)
    whole = xp.zeros((blocks, LANES, k * POSITIONS, config.m), np.uint8)
    whole[:, :, : spec.vectors] = codes.reshape(blocks, LANES, spec.vectors, config.m)
    whole = whole.reshape(blocks, LANES, k, POSITIONS, config.m)
    order = positions(phases(spec))
    # [lane, step, block, k block, codebook] -> [k block, codebook, block, lane, step]
    steps = whole[:, xp.asarray(np.arange(LANES)[:, None]), :, xp.asarray(order)].transpose(3, 4, 2, 0, 1)
    row_bytes = _pack(steps.reshape(-1, blocks, LANES, POSITIONS), container_bits(config.b))
    chunk = _chunk_bytes(config.b)
    chunks = row_bytes.reshape(*row_bytes.shape[:-1], -1, chunk).swapaxes(2, 3)
    arranged = xp.zeros((position_rows(spec), *chunks.shape[1:]), np.uint8)
    arranged[: len(chunks)] = chunks
    return arranged


def restore_codes(arranged: Any, spec: CodebookSpec) -> Any:
    """The inverse of `arrange_codes`: uint8 [M, K/v, m]."""
    xp, m, k, blocks = array_module(arranged), spec.config.m, k_blocks(spec), row_blocks(spec)
    row_bytes = arranged[: k * m].swapaxes(2, 3).reshape(k, m, blocks, LANES, -1)
    steps = _unpack(row_bytes, container_bits(spec.config.b))
    step_of = np.argsort(positions(phases(spec)), axis=1)  # [lane, position]
    # [k block, codebook, block, lane, position] -> [block, lane, k block, position, codebook]
    whole = steps[..., xp.asarray(np.arange(LANES)[:, None]), xp.asarray(step_of)].transpose(2, 3, 0, 4, 1)
    return unpad_rows(spec, whole.reshape(blocks * LANES, k * POSITIONS, m)[:, : spec.vectors])


def arrange_scales(weight: CodebookWeight) -> Any:
    """float16 [stored group][block][chunk][lane][phases of a load]; [block][lane] for one scale a row."""
    spec, scales = weight.spec, weight.scales
    xp = array_module(scales)
    scales = pad_rows(spec, scales)
    blocks, count = len(scales) // LANES, phases(spec)
    if count == 0:
        return xp.ascontiguousarray(scales.reshape(blocks, LANES))
    length, stride = POSITIONS // count, POSITIONS << scale_shift(spec)
    stored = stored_scales(spec) // count
    vectors = np.arange(stored)[:, None, None] * stride + positions(count)[None, :, ::length] // length * length
    groups = np.minimum(vectors, spec.vectors - 1) // spec.group_vectors  # [stored, lane, phase]
    by_lane = scales.reshape(blocks, LANES, -1)[:, xp.asarray(np.arange(LANES)[None, :, None]), xp.asarray(groups)]
    chunk = min(count, MAX_PHASE_CHUNK)
    chunks = by_lane.transpose(1, 0, 2, 3).reshape(stored, blocks, LANES, count // chunk, chunk)
    return xp.ascontiguousarray(chunks.swapaxes(2, 3))


def arrange_codebooks(weight: CodebookWeight) -> Any:
    """float16 [part][codebook][centroid][v rounded up to a multiple of four], the rest zeros."""
    books = weight.part_codebooks
    width = -(-weight.config.v // _QUARTER) * _QUARTER
    padded = array_module(books).zeros((*books.shape[:-1], width), np.float16)
    padded[..., : books.shape[-1]] = books
    return padded


def table_scale(weight: CodebookWeight) -> float:
    """The power of two that keeps eight fp16 entries in range, x being below 2^14."""
    largest = float(abs(weight.codebooks.astype(np.float32)).sum(-1).max())
    return 2.0 ** (-2 - math.ceil(math.log2(largest))) if largest else 1.0


def _chunk_bytes(b: int) -> int:
    """Of codes that a lane loads at once."""
    return min(16, block_bytes(b) // LANES)


def _pack(codes: Any, bits: int) -> Any:
    """uint8 [..., 32] steps -> [..., 4 * bits] bytes: byte i of a word has step i lowest, then i + 4, i + 8, ..."""
    words = codes.reshape(*codes.shape[:-1], bits, 8 // bits, 4)
    return packed(words, bits).reshape(*codes.shape[:-1], 4 * bits)


def _unpack(row_bytes: Any, bits: int) -> Any:
    """The inverse of `_pack`: uint8 [..., 4 * bits] bytes -> [..., 32] steps."""
    words = row_bytes.reshape(*row_bytes.shape[:-1], bits, 4)
    return unpacked(words, bits).reshape(*row_bytes.shape[:-1], POSITIONS)
