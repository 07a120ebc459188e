"""The dequantising kernel on a GPU: centroids gathered straight into the tensor cores' operands.

A fast form for vectors of 4, 8 and 16 weights and groups of at least 16, and a plain form for all else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from codegemm.engines.cuda import dequant_cut as cut
from codegemm.engines.cuda import dequant_layout as layout
from codegemm.engines.cuda import dequant_plain as plain
from codegemm.engines.cuda import device as gpus
from codegemm.engines.cuda import rows
from codegemm.engines.cuda.dequant_cut import Cut
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.launch import X_TYPES, CudaKernel, Launch, Prepared, launch
from codegemm.engines.cuda.model import Work
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost

SOURCE = "dequant.cu"
# `Dequant` in dequant_layout.cuh.
ARGUMENTS = np.dtype(
    [(name, np.uint64) for name in ("codes", "codebooks", "scales")]
    + [(name, np.int32) for name in ("out_features", "in_features", "row_blocks", "k_blocks")]
    + [(name, np.int32) for name in ("split_blocks", "chunk_blocks", "group_blocks")]
    + [(name, np.int32) for name in ("group_vectors", "padded_vectors")]
    + [("slices", rows.SLICES)],
    align=True,
)


def arguments(prepared: Prepared, made: Cut, address: Callable[[Any], int]) -> np.ndarray:
    """The kernel's structure; `address` gives an array's place in memory."""
    spec = prepared.spec
    assert isinstance(spec, CodebookSpec)
    steps = layout.group_steps(spec)
    return np.array(
        (
            *(address(prepared.arrays[name]) for name in ("codes", "codebooks", "scales")),
            spec.out_features, spec.in_features, rows.row_blocks(spec), made.k_blocks,
            made.split_blocks, made.chunk_blocks, max(1, steps // layout.STEPS),
            layout.group_vectors(spec), steps * layout.STEP, rows.slices_argument(made.slices),
        ),
        ARGUMENTS,
    )  # fmt: skip


def instance(spec: CodebookSpec, dtype: np.dtype, made: Cut) -> str:
    """The name of the template's instance."""
    config = spec.config
    shared = "true" if made.shared else "false"
    values = (config.v, config.m, config.b, layout.phases(spec), made.batch, X_TYPES[dtype.name], shared)
    return f"DequantShape<{', '.join(map(str, values))}>"


class Dequant(CudaKernel):
    """Gathers centroids by the codes into mma's operand: any codebook weight, up to 64 rows of x."""

    name = "dequant"
    automatic = True

    def refuses(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> str | None:
        if not isinstance(spec, CodebookSpec):
            return "it multiplies CodebookWeights"
        if n > cut.MAX_N:
            return f"n={n}: it multiplies up to {cut.MAX_N} rows of x; dequant_dense is for more"
        return rows.too_many_parts(spec)

    def arrange(self, weight: Weight) -> Prepared:
        assert isinstance(weight, CodebookWeight)
        if not cut.fits(weight.spec):
            return plain.arrange(weight)
        arrays = {
            "codes": layout.arrange_codes(weight),
            "codebooks": weight.part_codebooks,
            "scales": layout.arrange_scales(weight),
        }
        return Prepared(weight.spec, weight.device, arrays)

    def decide(self, prepared: Prepared, n: int, dtype: np.dtype, out_dtype: np.dtype) -> Launch:
        spec, gpu = prepared.spec, gpus.gpu(prepared.device)
        assert isinstance(spec, CodebookSpec)
        if not cut.fits(spec):
            return plain.decide(prepared, n, dtype, out_dtype, gpu)
        made = cut.cut_for(spec, n, gpu)
        filled = arguments(prepared, made, gpus.address)
        return launch(
            prepared.device,
            SOURCE,
            instance(spec, dtype, made),
            (len(made.slices), made.passes, made.splits),
            rows.LANES * made.warps,
            made.shared_bytes,
            (np.int32(n), np.int32(out_dtype == np.float32), filled),
        )

    def instances(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> list[tuple[str, str]]:
        assert isinstance(spec, CodebookSpec)
        if not cut.fits(spec):
            return [(plain.SOURCE, plain.instance(spec, dtype, plain.cut_for(spec, n, gpu)))]
        return [(SOURCE, instance(spec, dtype, cut.cut_for(spec, n, gpu)))]

    def workspace(self, spec: Spec, n: int, device: str) -> int:
        assert isinstance(spec, CodebookSpec)
        gpu, blocks = gpus.gpu(device), rows.row_blocks(spec)
        splits_for = cut.cut_for if cut.fits(spec) else plain.cut_for
        return max(rows.workspace_bytes(splits_for(spec, few, gpu).splits, few, blocks) for few in range(1, n + 1))

    def work(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> tuple[Work, ...]:
        assert isinstance(spec, CodebookSpec)
        cost = self.cost(spec, n, dtype)
        if not cut.fits(spec):
            return (plain.work(plain.cut_for(spec, n, gpu), spec, n, gpu, cost),)
        return (cut.work(cut.cut_for(spec, n, gpu), spec, gpu, cost),)

    def parts(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> dict[str, float]:
        assert isinstance(spec, CodebookSpec)
        return cut.parts(cut.cut_for(spec, n, gpu), spec, gpu) if cut.fits(spec) else {}

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        assert isinstance(spec, CodebookSpec)
        config, (m_rows, k) = spec.config, spec.shape
        blocks = rows.row_blocks(spec)
        if cut.fits(spec):
            codes = layout.k_blocks(spec) * config.m * blocks * layout.block_bytes(spec)
        else:
            codes = spec.vectors * config.m * blocks * rows.LANES * (1 if config.b <= 8 else 2)
        books = 2 * len(spec.part_rows) * config.m * config.v << config.b
        scales = 2 * rows.LANES * blocks * spec.groups
        return Cost(
            bytes_read=codes + books + scales + n * k * dtype.itemsize,
            bytes_written=n * m_rows * dtype.itemsize,
            lookups=m_rows * spec.vectors * config.m,
            multiply_adds=n * (m_rows * k * config.m + m_rows * spec.groups),
        )
