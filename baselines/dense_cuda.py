"""Dense products on a GPU with a dequantised weight: held whole in float16, or rebuilt slice by slice at every call."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from codegemm.arrays import array_module
from codegemm.baselines.dense import dense_cost
from codegemm.engines.cuda import device as gpus
from codegemm.engines.cuda import gemm
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.launch import X_TYPES, CudaKernel, Launch, Prepared, Run, launch
from codegemm.engines.cuda.model import START, Work
from codegemm.engines.cuda.rows import COUNTER_BYTES
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel

FEW_ROWS = 64  # of x; for more the weights may be rounded to bfloat16 unasked
SLICE_BYTES = 256 << 20  # of dense weights at a time
SOURCE = "dequantize.cu"
THREADS = 256  # must match `most_threads` in dequantize.cu
BLOCKS = 8  # a multiprocessor
# `Dequantize` in dequantize.cu.
ARGUMENTS = np.dtype(
    [(name, np.uint64) for name in ("codes", "codebooks", "scales")]
    + [(name, np.int32) for name in ("rows", "vectors", "codebooks_count", "centroids", "group_vectors", "groups")],
    align=True,
)


class DenseCuda(Kernel):
    """float16 weights (for float32 and bfloat16 x of that dtype), cuBLAS."""

    name = "dense"
    engine = "cuda"
    extended = True

    def unavailable(self) -> str | None:
        return gpus.unavailable() or gemm.unavailable()

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        return None if dtype.name in X_TYPES else f"x is {dtype}: it takes {', '.join(X_TYPES)}"

    def prepare(self, weight: Weight, device: str) -> Any:
        # Prepared before x's dtype is known: other dtypes are made from float16 at their first use.
        return {np.dtype(np.float16): gpus.to_device(weight.dequantize(np.float16), device)}

    def load(self, prepared: Any, n: int, dtype: np.dtype) -> None:
        gemm.load()
        _of_dtype(prepared, dtype)

    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        gemm.multiply(x, _of_dtype(prepared, x.dtype), out, stream=stream)

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        return dense_cost(spec, n, dtype, dtype.itemsize)

    def work(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> tuple[Work, ...]:
        """What a product has to do on a GPU."""
        return (gemm_work(*spec.shape, n, dtype),)

    def bits_per_weight(self, spec: Spec) -> float:
        return 16


def _of_dtype(prepared: dict[np.dtype, Any], dtype: np.dtype) -> Any:
    if dtype not in prepared:
        prepared[dtype] = prepared[np.dtype(np.float16)].astype(dtype)
    return prepared[dtype]


def gemm_work(m: int, k: int, n: int, dtype: np.dtype) -> Work:
    """A library's product, its tensor cores as full as its tiles of at least 16 rows of x allow."""
    padded = -(-n // 16) * 16
    return Work(
        dram_bytes=dtype.itemsize * (m * k + n * (m + k)),
        mma=m * k * padded / 2048 * (1 if dtype.itemsize == 2 else 8),
        latency=START,
    )


@dataclass(frozen=True)
class Slice:
    """Rows of a matrix: their first column in the result, how many, the launch that rebuilds them in the workspace."""

    first: int
    rows: int
    dequantize: Launch


@dataclass(frozen=True)
class _Sliced:
    """A product slice by slice."""

    slices: tuple[Slice, ...]
    dtype: np.dtype

    def __call__(self, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        k = x.shape[1]
        for part in self.slices:
            part.dequantize(x, out, workspace, stream)
            size = part.rows * k * self.dtype.itemsize
            dense = workspace[COUNTER_BYTES : COUNTER_BYTES + size].view(self.dtype).reshape(part.rows, k)
            gemm.multiply(x, dense, out, part.first, stream)


class DequantDenseCuda(CudaKernel):
    """Rebuilds slices of rows of at most 256 MiB in x's dtype and multiplies them by cuBLAS: for many rows of x.

    Its error is that of rounding the weights: about 2e-4 of the result's norm in float16, 1.7e-3 in bfloat16.
    """

    name = "dequant_dense"
    automatic = True

    def unavailable(self) -> str | None:
        return super().unavailable() or gemm.unavailable()

    def is_automatic(self, n: int, dtype: np.dtype) -> bool:
        return n > FEW_ROWS or dtype.name != "bfloat16"

    def refuses(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> str | None:
        return None if isinstance(spec, CodebookSpec) else "it multiplies CodebookWeights"

    def arrange(self, weight: Weight) -> Prepared:
        assert isinstance(weight, CodebookWeight)
        arrays = {"codes": weight.codes, "codebooks": _whole_words(weight.part_codebooks), "scales": weight.scales}
        return Prepared(weight.spec, weight.device, arrays)

    def batches(self, n: int) -> Iterable[int]:
        return (n,)

    def bind(self, prepared: Prepared, n: int, dtype: np.dtype, out_dtype: np.dtype) -> Run:
        return super().bind(prepared, 1, dtype, dtype)  # the slices depend on neither n nor out

    def decide(self, prepared: Prepared, n: int, dtype: np.dtype, out_dtype: np.dtype) -> Run:
        spec = prepared.spec
        assert isinstance(spec, CodebookSpec)
        gpu = gpus.gpu(prepared.device)
        source = instance(spec, dtype, gpu)
        gemm.load()
        made = [
            Slice(first, end - first, self._launch(prepared, part, first, end, source, gpu))
            for part, first, end in slices(spec, dtype)
        ]
        return _Sliced(tuple(made), dtype)

    def _launch(self, prepared: Prepared, part: int, first: int, end: int, name: str, gpu: Gpu) -> Launch:
        spec, arrays = prepared.spec, prepared.arrays
        assert isinstance(spec, CodebookSpec)
        config = spec.config
        codes, books, scales = arrays["codes"][first:end], arrays["codebooks"][part], arrays["scales"][first:end]
        filled = np.array(
            (
                *(gpus.address(array) for array in (codes, books, scales)), end - first, spec.vectors, config.m,
                config.centroids, spec.vectors // spec.groups, spec.groups,
            ),
            ARGUMENTS,
        )  # fmt: skip
        grid = min(end - first, BLOCKS * gpu.multiprocessors)
        shared = codebook_bytes(spec) if in_shared_memory(spec, gpu) else 0
        constants = (np.int32(COUNTER_BYTES), filled)
        return launch(prepared.device, SOURCE, name, (grid,), THREADS, shared, constants, arrays)

    def instances(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> list[tuple[str, str]]:
        assert isinstance(spec, CodebookSpec)
        return [(SOURCE, instance(spec, dtype, gpu))]

    def workspace(self, spec: Spec, n: int, device: str) -> int:
        assert isinstance(spec, CodebookSpec)
        rows = max(end - first for _, first, end in slices(spec, np.dtype(np.float32)))
        return COUNTER_BYTES + 4 * rows * spec.in_features

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        assert isinstance(spec, CodebookSpec)
        m, k = spec.shape
        lookups = m * spec.vectors * spec.config.m
        stored = lookups * (1 if spec.config.b <= 8 else 2) + 2 * m * spec.groups
        books = 2 * len(spec.part_rows) * spec.config.m * spec.config.v << spec.config.b
        dense = dtype.itemsize * m * k
        return Cost(
            bytes_read=stored + books + dense + n * k * dtype.itemsize,
            bytes_written=dense + n * m * dtype.itemsize,
            lookups=lookups,
            multiply_adds=n * m * k + m * spec.groups * spec.config.group_size(k),
            launches=2 * len(slices(spec, dtype)),
        )

    def work(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> tuple[Work, ...]:
        assert isinstance(spec, CodebookSpec)
        cost = self.cost(spec, n, dtype)
        m, k = spec.shape
        dense = dtype.itemsize * m * k
        product = gemm_work(m, k, n, dtype)
        decode = Work(
            dram_bytes=cost.bytes_read - n * k * dtype.itemsize,
            l2_bytes=0 if in_shared_memory(spec, gpu) else 2 * cost.lookups * spec.config.v,
            # Random centroids meet in banks: about three wavefronts where one would do.
            wavefronts=cost.lookups / 32 * max(1, spec.config.v // 4) * 6,
            instructions=dense / dtype.itemsize / 32 * 4,
            latency=START,
        )
        return decode, product


def slices(spec: CodebookSpec, dtype: np.dtype) -> list[tuple[int, int, int]]:
    """(part, first row, end row) of near-equal slices of at most 256 MiB in `dtype`, none across parts."""
    most = max(1, SLICE_BYTES // (dtype.itemsize * spec.in_features))
    made, start = [], 0
    for part, rows in enumerate(spec.part_rows):
        count = -(-rows // most)
        bounds = [start + rows * i // count for i in range(count + 1)]
        made += [(part, first, end) for first, end in itertools.pairwise(bounds)]
        start += rows
    return made


def codebook_bytes(spec: CodebookSpec) -> int:
    """Of one part's codebooks, in whole words."""
    return -(-2 * spec.config.m * spec.config.v * spec.config.centroids // 4) * 4


def in_shared_memory(spec: CodebookSpec, gpu: Gpu) -> bool:
    """Whether the codebooks fit beside another thread block's."""
    return codebook_bytes(spec) <= gpu.shared_per_multiprocessor // 4


def instance(spec: CodebookSpec, dtype: np.dtype, gpu: Gpu) -> str:
    """The name of the template's instance."""
    code = "u8" if spec.config.b <= 8 else "u16"
    shared = "true" if in_shared_memory(spec, gpu) else "false"
    return f"dequantize<{spec.config.v}, {code}, {X_TYPES[dtype.name]}, {shared}>"


def _whole_words(books: Any) -> Any:
    """[parts, m, centroids, v] as [parts, whole words of fp16], so that a kernel copies words."""
    flat = books.reshape(len(books), -1)
    if flat.shape[1] % 2 == 0:
        return flat
    padded = array_module(books).zeros((len(books), flat.shape[1] + 1), np.float16)
    padded[:, :-1] = flat
    return padded
