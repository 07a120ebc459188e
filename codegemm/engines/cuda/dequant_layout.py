"""The order in which the dequantising kernel reads codes and scales; `kernels_cu/dequant_layout.cuh` says why.

Everything works on NumPy and on CuPy arrays alike: a weight on a GPU is arranged there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from codegemm import kernels_cu
from codegemm.arrays import array_module
from codegemm.engines import limits
from codegemm.engines.cuda.gpu import LANES
from codegemm.engines.cuda.rows import container_bits, packed, pad_rows, row_blocks, unpacked, unpad_rows
from codegemm.formats.codebook import CodebookSpec, CodebookWeight

V = (4, 8, 16)  # vector lengths that fill fragments of mma
STEP = 4  # k-vectors of a step
STEPS = kernels_cu.constant("dequant_layout.cuh", "steps")  # of a k block
BLOCK = STEP * STEPS  # k-vectors of a k block
TILES = 4  # of eight rows in a block of 32


def group_steps(spec: CodebookSpec) -> int:
    """Steps of a group, filled up to one, two or a multiple of four."""
    steps = -(-spec.group_vectors // STEP)
    return steps if steps <= 2 else -(-steps // STEPS) * STEPS


def phases(spec: CodebookSpec) -> int:
    """Scales of a row in a k block; 0 where the whole row has one."""
    return 0 if spec.groups == 1 else STEPS // min(STEPS, group_steps(spec))


def k_blocks(spec: CodebookSpec) -> int:
    """Blocks of four steps, the last filled up."""
    return -(-spec.groups * group_steps(spec) // STEPS)


def block_bytes(spec: CodebookSpec) -> int:
    """Bytes of the codes of 32 rows in a k block, for each codebook."""
    return LANES * BLOCK * container_bits(spec.config.b) // 8


def stored_scales(spec: CodebookSpec) -> int:
    """Scales stored for a row: a k block of several groups reads them all."""
    return max(spec.groups, k_blocks(spec) * phases(spec) if phases(spec) > 1 else 0)


def too_many_scales(spec: CodebookSpec) -> str | None:
    """Why kernels that read this order refuse a weight, or None."""
    return limits.too_many("loads of scales", stored_scales(spec) * row_blocks(spec) * STEP)


def columns(spec: CodebookSpec) -> np.ndarray:
    """The k-vector at every place of the k blocks, -1 where a group or the last block was filled up: [k block * 16]."""
    padded = STEP * group_steps(spec)
    place = np.arange(BLOCK * k_blocks(spec))
    group, inside = place // padded, place % padded
    vector = group * spec.group_vectors + inside
    return np.where((inside < spec.group_vectors) & (group < spec.groups), vector, -1)


def arrange_codes(weight: CodebookWeight) -> Any:
    """uint8 [k block][codebook][block of 32 rows][load][lane][bytes of a load]: 16 codes a lane, whose lane 4r + q has
    row 8 * tile + r and k-vector 4 * step + q."""
    spec = weight.spec
    codes = pad_rows(spec, weight.codes)
    xp = array_module(codes)
    place = columns(spec)
    chosen = codes[:, xp.asarray(np.maximum(place, 0))]
    if (place < 0).any():
        chosen[:, xp.asarray(np.flatnonzero(place < 0))] = 0
    shape = (row_blocks(spec), TILES, 8, k_blocks(spec), STEPS, STEP, spec.config.m)
    # [block, tile, r, k block, step, q, codebook] -> [k block, codebook, block, r, q, tile, step]
    order = chosen.reshape(shape).transpose(3, 6, 0, 2, 5, 1, 4)
    return xp.ascontiguousarray(_pack(order.reshape(*order.shape[:3], LANES, TILES, STEPS), spec))


def restore_codes(arranged: Any, spec: CodebookSpec) -> Any:
    """The inverse of `arrange_codes`: uint8 or uint16 [M, K/v, m]."""
    m, blocks, place = spec.config.m, row_blocks(spec), columns(spec)
    order = _unpack(arranged, spec).reshape(k_blocks(spec), m, blocks, 8, STEP, TILES, STEPS)
    # [k block, codebook, block, r, q, tile, step] -> [block, tile, r, k block, step, q, codebook]
    chosen = order.transpose(2, 5, 3, 0, 6, 4, 1).reshape(blocks * LANES, len(place), m)
    return unpad_rows(spec, chosen[:, array_module(chosen).asarray(np.flatnonzero(place >= 0))])


def arrange_scales(weight: CodebookWeight) -> Any:
    """float16 [group][block of 32 rows][q][tile][2]: rows 8 * tile + 2q and the next."""
    spec = weight.spec
    scales = pad_rows(spec, weight.scales)
    xp = array_module(scales)
    stored = stored_scales(spec)
    index = np.minimum(np.arange(stored), spec.groups - 1)
    by_group = scales[:, xp.asarray(index)].reshape(row_blocks(spec), TILES, STEP, 2, stored)
    return xp.ascontiguousarray(by_group.transpose(4, 0, 2, 1, 3))


def _pack(codes: Any, spec: CodebookSpec) -> Any:
    """[..., tile, step] -> uint8 [..., bytes]: byte i of a word has step i of a tile lowest, then of the next tiles."""
    bits = container_bits(spec.config.b)
    if bits == 16:
        loads = codes.reshape(*codes.shape[:-2], 2, TILES // 2 * STEPS).swapaxes(-2, -3)
        return array_module(codes).ascontiguousarray(loads).view(np.uint8)
    tiles = 8 // bits  # of a word
    words = codes.reshape(*codes.shape[:-2], TILES // tiles, tiles, STEPS)
    return packed(words, bits).reshape(*codes.shape[:-2], -1)


def _unpack(arranged: Any, spec: CodebookSpec) -> Any:
    """The inverse of `_pack`: uint8 or uint16 [..., tile, step]."""
    bits = container_bits(spec.config.b)
    if bits == 16:
        loads = arranged.view(np.uint16).swapaxes(-2, -3)
        return loads.reshape(*loads.shape[:-2], TILES, STEPS)
    words = arranged.reshape(*arranged.shape[:-1], -1, STEPS)
    return unpacked(words, bits).reshape(*arranged.shape[:-1], TILES, STEPS)
