"""ExtendedWeights on a GPU: x rotated and its groups added up before the core's product, the offsets' part after."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codegemm.arrays import array_module, beside
from codegemm.engines.cuda import compiler
from codegemm.engines.cuda import device as gpus
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.launch import X_TYPES, CudaKernel, Decided, Launch, Launches, Run, launch, unfit
from codegemm.engines.cuda.model import START, Work, balance, seconds
from codegemm.engines.cuda.rows import COUNTER_BYTES
from codegemm.engines.extended import FLOAT32, ExtendedKernel, Given, Places, finishes, given
from codegemm.formats.extended import ExtendedSpec, ExtendedWeight
from codegemm.formats.weight import Spec, Weight

SOURCE = "extended.cu"
LANES = 32
MAX_THREADS = 1024  # must match `most_threads` in extended.cu
FINISH_ROWS = 8  # of x, and warps of a thread block: must match `finish_rows` there
# Rows of x beyond which x' is fp16: a library's product takes the same time for float32 as for eight times the rows.
FLOAT_ROWS = 64
_LEAST_THREADS = 256
_STEP_LATENCY = 40.0  # clocks of a step of a Hadamard transform, which wait for each other
# `Extended` in extended.cu.
ARGUMENTS = np.dtype(
    [(name, np.uint64) for name in ("factors", "addends")]
    + [(name, np.int32) for name in ("batch", "columns", "rows", "block", "terms", "groups")]
    + [(name, np.int32) for name in ("changed", "scaled", "y_is_float")]
    + [(name, np.uint64) for name in ("x", "y", "sums", "scales")],
    align=True,
)


@dataclass(frozen=True)
class Cut:
    """A rotation's thread blocks: their threads, and the numbers that a thread holds."""

    threads: int
    each: int

    def row_blocks(self, columns: int) -> int:
        """Thread blocks of a row of x."""
        return -(-columns // (self.threads * self.each))

    @property
    def shared_bytes(self) -> int:
        """Two words a number and one a warp."""
        return 8 * self.threads * self.each + 4 * LANES


def cut_for(block: int) -> Cut:
    """Thread blocks of whole blocks of a rotation."""
    return Cut(max(_LEAST_THREADS, min(block, MAX_THREADS)), max(1, block // MAX_THREADS))


@dataclass
class Prepared:
    """The core in the inner kernel's form, what is around it on the GPU, and what was decided so far.

    arrays: `factors`, signs over the root of the block [K], and `addends` [K/g, M], both float32.
    """

    spec: ExtendedSpec
    device: str
    core: Any
    arrays: dict[str, Any]
    runs: dict[tuple[int, np.dtype, np.dtype], Run] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        return Prepared(self.spec, self.device, copy.deepcopy(self.core, memo), copy.deepcopy(self.arrays, memo))


@dataclass(frozen=True)
class Part:
    """An array in the workspace."""

    start: int
    shape: tuple[int, int]
    dtype: np.dtype

    def of(self, workspace: Any) -> Any:
        """It."""
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        return workspace[self.start : self.start + size].view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class _Product:
    """The inner kernel's product between the launches before and after it.

    x, y: x' and y'; None where these are x and y themselves.
    """

    before: Launches
    inner: Run
    after: Launches
    x: Part | None
    y: Part | None

    def __call__(self, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        self.before(x, out, workspace, stream)
        inner_x = x if self.x is None else self.x.of(workspace)
        inner_out = out if self.y is None else self.y.of(workspace)
        self.inner(inner_x, inner_out, workspace, stream)
        self.after(x, out, workspace, stream)


class CudaExtended(Decided, ExtendedKernel):
    """Up to three launches more than the inner kernel's."""

    least_workspace = COUNTER_BYTES

    def unavailable(self) -> str | None:
        return gpus.unavailable() or super().unavailable()

    def given(self, spec: ExtendedSpec, n: int, dtype: np.dtype) -> Given:
        return given(spec, dtype, halves=n > FLOAT_ROWS)

    def refuses(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> str | None:
        """Why this product can't be on any GPU that is new enough, or None."""
        if not isinstance(spec, ExtendedSpec):
            return "it multiplies ExtendedWeights"
        inner = self.inner
        dtype = self.given(spec, n, dtype).dtype
        return inner.refuses(spec.core, n, dtype, gpu) if isinstance(inner, CudaKernel) else None

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        return unfit(dtype, device) or super().supports(spec, n, dtype, device)

    def prepare(self, weight: Weight, device: str) -> Prepared:
        assert isinstance(weight, ExtendedWeight)
        spec, arrays = weight.spec, {}
        if spec.block:
            factors = gpus.to_host(weight.signs) / np.sqrt(spec.block)
            arrays["factors"] = gpus.to_device(factors.astype(np.float32), device)
        if spec.offsets:
            with beside(weight.offsets):
                arrays["addends"] = array_module(weight.offsets).ascontiguousarray(weight.addends(np.float32).T)
        prepared = Prepared(spec, device, self.inner.prepare(weight.core, device), arrays)
        gpus.synchronize()  # products may come on any stream
        return prepared

    def load(self, prepared: Prepared, n: int, dtype: np.dtype) -> None:
        for rows in {min(n, FLOAT_ROWS), n}:
            self.inner.load(prepared.core, rows, self.given(prepared.spec, rows, dtype).dtype)
            for out_dtype in {dtype, FLOAT32}:
                self.bind(prepared, rows, dtype, out_dtype)

    def decide(self, prepared: Prepared, n: int, dtype: np.dtype, out_dtype: np.dtype) -> _Product:
        spec, given = prepared.spec, self.given(prepared.spec, n, dtype)
        where, finished = self.places(spec, n, prepared.device), finishes(spec, given, out_dtype)
        filled = _arguments(prepared, n, given, out_dtype, where)

        def launch_of(name: str) -> Launch:
            grid, threads, shared = shape(spec, n, name)
            made = instance(spec, name, dtype, given)
            return launch(prepared.device, SOURCE, made, grid, threads, shared, (filled,), prepared.arrays)

        before = [*(["rotate_x"] if given.changed else []), *(["sum_groups"] if spec.offsets else [])]
        return _Product(
            Launches(tuple(map(launch_of, before))),
            self.inner.bind(prepared.core, n, given.dtype, FLOAT32 if finished else out_dtype),
            Launches((launch_of("finish"),) if finished else ()),
            Part(where.x, (n, spec.core.in_features), given.dtype) if given.changed else None,
            Part(where.y, (n, spec.out_features), FLOAT32) if finished else None,
        )

    def builds(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> Iterable[Callable[[], object]]:
        assert isinstance(spec, ExtendedSpec)
        arch = gpus.gpu(device).arch
        made: list[Callable[[], object]] = []
        for rows in {min(n, FLOAT_ROWS), n}:
            made += super().builds(spec, rows, dtype, device)
            names = instances(spec, dtype, self.given(spec, rows, dtype))
            made += [compiler.Build(SOURCE, name, arch) for name in names]
        return dict.fromkeys(made)

    def work(self, spec: Spec, n: int, dtype: np.dtype, gpu: Gpu) -> tuple[Work, ...]:
        """What a product's launches have to do on a GPU; of an inner kernel that says it."""
        assert isinstance(spec, ExtendedSpec)
        inner: Any = self.inner
        given = self.given(spec, n, dtype)
        return (*inner.work(spec.core, n, given.dtype, gpu), *around_work(spec, n, dtype, given, gpu))

    def estimate(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> float:
        assert isinstance(spec, ExtendedSpec)
        gpu, given = gpus.gpu(device), self.given(spec, n, dtype)
        inner = self.inner.estimate(spec.core, n, given.dtype, device)
        return inner + seconds(around_work(spec, n, dtype, given, gpu), gpu)


def shape(spec: ExtendedSpec, n: int, name: str) -> tuple[tuple[int, ...], int, int]:
    """Grid, threads and bytes of shared memory of a launch."""
    if name == "rotate_x":
        cut = cut_for(spec.block)
        return (n * cut.row_blocks(spec.in_features),), cut.threads, cut.shared_bytes
    if name == "sum_groups":
        return (-(-n * spec.groups * LANES // _LEAST_THREADS),), _LEAST_THREADS, 0
    grid = -(-spec.out_features // LANES), -(-n // FINISH_ROWS)
    return grid, LANES * FINISH_ROWS, 4 * LANES * FINISH_ROWS**2


def instance(spec: ExtendedSpec, name: str, dtype: np.dtype, given: Given) -> str:
    """The template's instance for x of a dtype."""
    if name == "rotate_x":
        return f"rotate_x<{X_TYPES[dtype.name]}, {X_TYPES[given.dtype.name]}, {cut_for(spec.block).each}>"
    return f"{name}<{X_TYPES[(given.dtype if name == 'sum_groups' else dtype).name]}>"


def instances(spec: ExtendedSpec, dtype: np.dtype, given: Given) -> list[str]:
    """All that a product launches beside the inner kernel's, whatever y's dtype."""
    names = [*(["rotate_x"] if given.changed else []), *(["sum_groups"] if spec.offsets else []), "finish"]
    return [instance(spec, name, dtype, given) for name in names]


def around_work(spec: ExtendedSpec, n: int, dtype: np.dtype, given: Given, gpu: Gpu) -> list[Work]:
    """What the launches beside the inner kernel's have to do, y being of x's dtype."""
    (m, k), made = spec.shape, []
    if given.changed:
        cut, steps = cut_for(spec.block), max(spec.block.bit_length() - 1, 0)
        warps = n * k / LANES
        made.append(
            Work(
                dram_bytes=n * k * dtype.itemsize + (4 * k if spec.block else 0),
                l2_bytes=given.dtype.itemsize * n * spec.core.in_features
                + (n * k * dtype.itemsize * cut.row_blocks(k) if given.scaled else 0),
                wavefronts=warps * (2 + 2 * max(0, steps - 5)),
                instructions=warps * (10 + 4 * steps + 2 * spec.terms),
                balance=balance(n * cut.row_blocks(k), gpu.multiprocessors),
                latency=START + steps * _STEP_LATENCY,
            )
        )
    if spec.offsets:
        made.append(
            Work(dram_bytes=0, l2_bytes=given.dtype.itemsize * n * k, instructions=n * k / LANES * 4, latency=START)
        )
    if finishes(spec, given, dtype):
        groups = spec.groups if spec.offsets else 0
        passes = -(-n // FINISH_ROWS)
        made.append(
            Work(
                dram_bytes=4 * m * groups + n * m * dtype.itemsize,
                l2_bytes=4 * n * m + 4 * (passes - 1) * m * groups,
                wavefronts=m / LANES * passes * 2 * FINISH_ROWS**2,
                instructions=m / LANES * (passes * FINISH_ROWS * 20 + 2 * n * groups),
                latency=START,
            )
        )
    return made


def _arguments(prepared: Prepared, n: int, given: Given, out_dtype: np.dtype, where: Places) -> np.ndarray:
    spec = prepared.spec
    return np.array(
        (
            *(gpus.address(prepared.arrays[name]) if name in prepared.arrays else 0 for name in ("factors", "addends")),
            n, spec.in_features, spec.out_features, max(spec.block, 1), spec.terms, spec.groups if spec.offsets else 0,
            given.changed, given.scaled, out_dtype == FLOAT32, where.x, where.y, where.sums, where.scales,
        ),
        ARGUMENTS,
    )  # fmt: skip
