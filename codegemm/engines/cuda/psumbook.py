"""The Psumbook kernel (CodeGEMM) on a GPU: tables of inner products in shared memory, gathered by the codes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codegemm.engines.cuda import cut, layout, library
from codegemm.engines.cuda import device as gpus
from codegemm.engines.cuda.cut import Cut
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel

SOURCE = "psumbook.cu"
MAX_N = cut.BATCHES[-1]
MAX_B = 8
MIN_ARCH = 80
X_TYPES = {"float16": "Half", "bfloat16": "Bfloat", "float32": "Float"}
# `Psumbook` in layout.cuh.
ARGUMENTS = np.dtype(
    [(name, np.uint64) for name in ("codes", "codebooks", "scales", "slices")]
    + [(name, np.int32) for name in ("out_features", "in_features", "row_blocks", "scale_shift")]
    + [(name, np.int32) for name in ("units", "units_per_tile", "units_per_split")]
    + [("table_scale", np.float32)],
    align=True,
)


@dataclass(frozen=True)
class Launch:
    """What a launch needs beside x, y and the workspace; `constants` are n, the structure and whether y is float32."""

    function: Any
    grid: tuple[int, int]
    block: tuple[int]
    shared_bytes: int
    constants: tuple[Any, Any, Any]
    slices: Any  # the structure points to it

    def __call__(self, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        """Start it."""
        self.function(
            self.grid, self.block, (x, out, workspace, *self.constants), shared_mem=self.shared_bytes, stream=stream
        )


@dataclass
class Prepared:
    """The weight in the kernel's order on its GPU, and the launches made so far, by rows, dtype of x and of y."""

    spec: CodebookSpec
    device: str
    codes: Any
    codebooks: Any
    scales: Any
    table_scale: float
    launches: dict[tuple[int, np.dtype, np.dtype], Launch] = field(default_factory=dict)

    @classmethod
    def of(cls, weight: CodebookWeight) -> Prepared:
        """Arranged where the weight's arrays are."""
        arrays = (layout.arrange_codes(weight), layout.arrange_codebooks(weight), layout.arrange_scales(weight))
        return cls(weight.spec, weight.device, *arrays, layout.table_scale(weight))

    def launch(self, n: int, dtype: np.dtype, out_dtype: np.dtype) -> Launch:
        """The launch for n rows of `dtype`; compiled and loaded at its first use."""
        found = self.launches.get((n, dtype, out_dtype))
        if found is None:
            found = self.launches.setdefault((n, dtype, out_dtype), self._make_launch(n, dtype, out_dtype))
        return found

    def _make_launch(self, n: int, dtype: np.dtype, out_dtype: np.dtype) -> Launch:
        made = cut.cut_for(self.spec, n, gpus.gpu(self.device))
        slices = gpus.to_device(cut.slice_table(made), self.device)
        filled = self.arguments(made, gpus.address(slices), gpus.address)
        values: tuple[Any, ...] = (np.int32(n), np.int32(out_dtype == np.float32), filled)
        return Launch(
            library.function(SOURCE, instance(self.spec, dtype, made), self.device),
            (len(made.slices), made.splits),
            (layout.LANES * made.warps,),
            made.shared_bytes,
            tuple(map(library.constant, values)),
            slices,
        )

    def arguments(self, made: Cut, slices: int, address: Any) -> np.ndarray:
        """The kernel's structure; `address` gives an array's place in memory."""
        spec = self.spec
        return np.array(
            (
                address(self.codes), address(self.codebooks), address(self.scales), slices,
                spec.out_features, spec.in_features, layout.row_blocks(spec), layout.scale_shift(spec),
                made.units, made.units_per_tile, made.units_per_split, self.table_scale,
            ),
            ARGUMENTS,
        )  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        codes, codebooks, scales = (copy.deepcopy(array, memo) for array in (self.codes, self.codebooks, self.scales))
        return Prepared(self.spec, self.device, codes, codebooks, scales, self.table_scale)


def instance(spec: CodebookSpec, dtype: np.dtype, made: Cut) -> str:
    """The name of the template's instance."""
    config = spec.config
    values = (config.v, config.m, config.b, layout.phases(spec), made.batch, X_TYPES[dtype.name], made.rows)
    return f"psumbook<{', '.join(map(str, values))}>"


def workspace_bytes(made: Cut, spec: CodebookSpec, n: int) -> int:
    """Counters and partial sums, as splits.cuh says."""
    if made.splits == 1:
        return 0
    return library.COUNTER_BYTES + 4 * made.splits * n * layout.LANES * layout.row_blocks(spec)


class Psumbook(Kernel):
    """Builds the tables of all centroids' inner products with x by tensor cores and gathers by the codes."""

    name = "psumbook"
    engine = "cuda"
    automatic = True

    def unavailable(self) -> str | None:
        return gpus.unavailable() or library.unavailable()

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        if not isinstance(spec, CodebookSpec):
            return "it multiplies CodebookWeights"
        if spec.config.b > MAX_B:
            return f"b={spec.config.b}: its tables hold 2^b entries a position, b up to {MAX_B}"
        if n > MAX_N:
            return f"n={n}: its tables hold up to {MAX_N} rows of x; more cost more lookups than dequantising does"
        if dtype.name not in X_TYPES:
            return f"x is {dtype}: it takes {', '.join(X_TYPES)}"
        gpu = gpus.gpu(device)
        if gpu.arch < MIN_ARCH:
            return f"{device} has compute capability {gpu.arch / 10}: it needs {MIN_ARCH / 10} or later"
        return None

    def prepare(self, weight: Weight, device: str) -> Prepared:
        assert isinstance(weight, CodebookWeight)
        prepared = Prepared.of(weight)
        gpus.synchronize()  # products may come on any stream
        return prepared

    def load(self, prepared: Prepared, n: int, dtype: np.dtype) -> None:
        for rows in range(1, n + 1):
            for out_dtype in {dtype, np.dtype(np.float32)}:
                prepared.launch(rows, dtype, out_dtype)

    def workspace(self, spec: Spec, n: int, device: str) -> int:
        assert isinstance(spec, CodebookSpec)
        gpu = gpus.gpu(device)
        return max(workspace_bytes(cut.cut_for(spec, rows, gpu), spec, rows) for rows in range(1, n + 1))

    def run(self, prepared: Prepared, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        prepared.launch(len(x), x.dtype, out.dtype)(x, out, workspace, stream)

    def bind(self, prepared: Prepared, n: int, dtype: np.dtype, out_dtype: np.dtype) -> Launch:
        return prepared.launch(n, dtype, out_dtype)

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        assert isinstance(spec, CodebookSpec)
        config, (rows, k) = spec.config, spec.shape
        blocks = layout.row_blocks(spec)
        position_rows = layout.k_blocks(spec) * config.m
        codes = position_rows * blocks * layout.block_bytes(config.b)
        books = 2 * len(spec.part_rows) * config.m * config.v << config.b
        scales = 2 * layout.LANES * blocks * layout.stored_scales(spec)
        return Cost(
            bytes_read=codes + books + scales + n * k * dtype.itemsize,
            bytes_written=n * rows * dtype.itemsize,
            lookups=rows * spec.vectors * config.m,
            multiply_adds=n * ((config.m * k << config.b) + rows * spec.groups),
        )
