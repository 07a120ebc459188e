"""The Psumbook kernel (CodeGEMM) on a GPU: tables of inner products in shared memory, gathered by the codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from codegemm.engines.cuda import device as gpus
from codegemm.engines.cuda import psumbook_cut as cut
from codegemm.engines.cuda import psumbook_layout as layout
from codegemm.engines.cuda import rows
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.launch import X_TYPES, CudaKernel, Launch, Prepared, launch
from codegemm.engines.cuda.model import Work
from codegemm.engines.cuda.psumbook_cut import Cut
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost

SOURCE = "psumbook.cu"
MAX_N = cut.BATCHES[-1]
MAX_B = 8
# `Psumbook` in psumbook_layout.cuh.
ARGUMENTS = np.dtype(
    [(name, np.uint64) for name in ("codes", "codebooks", "scales")]
    + [(name, np.int32) for name in ("out_features", "in_features", "row_blocks", "scale_shift")]
    + [(name, np.int32) for name in ("units", "units_per_tile", "units_per_split")]
    + [("table_scale", np.float32), ("slices", rows.SLICES)],
    align=True,
)


def arguments(prepared: Prepared, made: Cut, address: Callable[[Any], int]) -> np.ndarray:
    """The kernel's structure; `address` gives an array's place in memory."""
    spec = prepared.spec
    assert isinstance(spec, CodebookSpec)
    return np.array(
        (
            *(address(prepared.arrays[name]) for name in ("codes", "codebooks", "scales")),
            spec.out_features, spec.in_features, rows.row_blocks(spec), layout.scale_shift(spec),
            made.units, made.units_per_tile, made.units_per_split, prepared.numbers["table_scale"],
            rows.slices_argument(made.slices),
        ),
        ARGUMENTS,
    )  # fmt: skip


def instance(spec: CodebookSpec, dtype: np.dtype, made: Cut) -> str:
    """The name of the template's instance."""
    config = spec.config
    values = (config.v, config.m, config.b, layout.phases(spec), made.batch, X_TYPES[dtype.name], made.rows)
    return f"psumbook<{', '.join(map(str, values))}>"


class Psumbook(CudaKernel):
    """Builds the tables of all centroids' inner products with x by tensor cores and gathers by the codes."""

    name = "psumbook"
    automatic = True

    def refuses(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> str | None:
        if not isinstance(spec, CodebookSpec):
            return "it multiplies CodebookWeights"
        if spec.config.b > MAX_B:
            return f"b={spec.config.b}: its tables hold 2^b entries a position, b up to {MAX_B}"
        if n > MAX_N:
            return f"n={n}: its tables hold up to {MAX_N} rows of x; more cost more lookups than dequantising does"
        return rows.too_many_parts(spec)

    def arrange(self, weight: Weight) -> Prepared:
        assert isinstance(weight, CodebookWeight)
        arrays = {
            "codes": layout.arrange_codes(weight),
            "codebooks": layout.arrange_codebooks(weight),
            "scales": layout.arrange_scales(weight),
        }
        return Prepared(weight.spec, weight.device, arrays, {"table_scale": layout.table_scale(weight)})

    def decide(self, prepared: Prepared, n: int, dtype: np.dtype, out_dtype: np.dtype) -> Launch:
        spec = prepared.spec
        assert isinstance(spec, CodebookSpec)
        made = cut.cut_for(spec, n, gpus.gpu(prepared.device))
        return launch(
            prepared.device,
            SOURCE,
            instance(spec, dtype, made),
            (len(made.slices), made.splits),
            rows.LANES * made.warps,
            made.shared_bytes,
            (
                np.int32(n),
                np.int32(out_dtype == np.float32),
                arguments(prepared, made, gpus.address),
            ),
        )

    def instances(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> list[tuple[str, str]]:
        assert isinstance(spec, CodebookSpec)
        return [(SOURCE, instance(spec, dtype, cut.cut_for(spec, n, gpu)))]

    def workspace(self, spec: Spec, n: int, device: str) -> int:
        assert isinstance(spec, CodebookSpec)
        gpu, blocks = gpus.gpu(device), rows.row_blocks(spec)
        return max(rows.workspace_bytes(cut.cut_for(spec, few, gpu).splits, few, blocks) for few in range(1, n + 1))

    def work(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> tuple[Work, ...]:
        assert isinstance(spec, CodebookSpec)
        return (cut.work(cut.cut_for(spec, n, gpu), spec, gpu, self.cost(spec, n, dtype)),)

    def parts(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> dict[str, float]:
        assert isinstance(spec, CodebookSpec)
        return cut.parts(cut.cut_for(spec, n, gpu), spec, gpu)

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        assert isinstance(spec, CodebookSpec)
        config, (m_rows, k) = spec.config, spec.shape
        blocks = rows.row_blocks(spec)
        position_rows = layout.k_blocks(spec) * config.m
        codes = position_rows * blocks * layout.block_bytes(config.b)
        books = 2 * len(spec.part_rows) * config.m * config.v << config.b
        scales = 2 * rows.LANES * blocks * layout.stored_scales(spec)
        return Cost(
            bytes_read=codes + books + scales + n * k * dtype.itemsize,
            bytes_written=n * m_rows * dtype.itemsize,
            lookups=m_rows * spec.vectors * config.m,
            multiply_adds=n * ((config.m * k << config.b) + m_rows * spec.groups),
        )
