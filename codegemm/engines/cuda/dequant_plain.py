"""The dequantising kernel's plain form on a GPU: whatever the fast form does not multiply."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from codegemm.arrays import array_module
from codegemm.engines.cuda import device as gpus
from codegemm.engines.cuda import rows
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.launch import X_TYPES, Launch, Prepared, launch
from codegemm.engines.cuda.model import Work, balance
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Cost

SOURCE = "dequant_plain.cu"
BATCHES = (1, 4, 16, 64)  # rows of x that a compiled kernel multiplies
WARPS = 8  # must match `most_threads` in dequant_plain.cu
_TURNS = 4  # k-vectors that a warp has at least
_BLOCKS = 4  # thread blocks of a multiprocessor
_LATENCY = 2600.0  # clocks that nothing hides: a start, codes and then centroids, the sums of the warps
# `DequantPlain` in dequant_plain.cu.
ARGUMENTS = np.dtype(
    [(name, np.uint64) for name in ("codes", "codebooks", "scales")]
    + [(name, np.int32) for name in ("out_features", "in_features", "row_blocks", "vectors", "split_vectors")]
    + [(name, np.int32) for name in ("group_vectors", "codebooks_count", "centroids")]
    + [("slices", rows.SLICES)],
    align=True,
)


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
    xp = array_module(weight.codes)
    codes = rows.pad_rows(spec, weight.codes).transpose(1, 2, 0)
    scales = rows.pad_rows(spec, weight.scales).swapaxes(0, 1)
    arrays = {
        "codes": xp.ascontiguousarray(codes),
        "codebooks": weight.part_codebooks,
        "scales": xp.ascontiguousarray(scales),
    }
    return Prepared(spec, weight.device, arrays)


def instance(spec: CodebookSpec, dtype: np.dtype, made: Cut) -> str:
    """The name of the template's instance."""
    code = "u8" if spec.config.b <= 8 else "u16"
    return f"dequant_plain<{spec.config.v}, {code}, {made.batch}, {X_TYPES[dtype.name]}>"


def decide(prepared: Prepared, n: int, dtype: np.dtype, out_dtype: np.dtype, gpu: Gpu) -> Launch:
    """The launch of a product of n rows."""
    spec = prepared.spec
    assert isinstance(spec, CodebookSpec)
    made = cut_for(spec, n, gpu)
    cut = rows.slices(spec, 1)
    filled = np.array(
        (
            *(gpus.address(prepared.arrays[name]) for name in ("codes", "codebooks", "scales")),
            spec.out_features, spec.in_features, rows.row_blocks(spec), spec.vectors,
            made.split_vectors, spec.vectors // spec.groups, spec.config.m, spec.config.centroids,
            rows.slices_argument(cut),
        ),
        ARGUMENTS,
    )  # fmt: skip
    return launch(
        prepared.device,
        SOURCE,
        instance(spec, dtype, made),
        (len(cut), made.splits),
        rows.LANES * WARPS,
        4 * WARPS * made.batch * rows.LANES,
        (np.int32(n), np.int32(out_dtype == np.float32), filled),
    )


def work(made: Cut, spec: CodebookSpec, n: int, gpu: Gpu, cost: Cost) -> Work:
    """What a product's launch has to do."""
    decoded = rows.row_blocks(spec) * spec.vectors  # of 32 k-vectors
    v, m = spec.config.v, spec.config.m
    return Work(
        dram_bytes=cost.bytes_read + cost.bytes_written,
        l2_bytes=decoded * 32 * 2 * v * m + rows.partial_bytes(made.splits, n, rows.row_blocks(spec)),
        instructions=decoded * (m * (4 + 3 * v) + 3 * v * n + 20),
        balance=balance(rows.row_blocks(spec) * made.splits, gpu.multiprocessors),
        latency=_LATENCY + gpu.round_trip * rows.join_trips(made.splits, n, 1),
    )
