"""AQLM's own way of multiplying (Egiazarian et al., 2024): one row of x at a time, one scale a row.

Up to 8 bits a code, as AQLM does on a CPU: the table of every k-vector and centroid is made first, whole, and the
codes, stored by k-vector, gather from it. The original adds into shared outputs from several threads, which races;
here each thread has rows of its own. Above 8 bits (1x16), as its GPU kernel does: the centroids are fetched and
multiplied. From 7 rows of x on it dequantises and multiplies dense.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codegemm.baselines.dequant_dense import DequantDense
from codegemm.engines.cpu import library
from codegemm.engines.cpu.dequant import Prepared as Dequantiser
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Kernel

MATVEC_ROWS = 6
_SOURCE = Path(__file__).with_name("aqlm.cpp")


class AqlmArgs(ctypes.Structure):
    """Must match `AqlmArgs` in aqlm.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "out", "workspace", "codes", "codebooks", "scales")),
        *((name, c_int32) for name in ("x_dtype", "out_dtype", "n", "rows", "in_features")),
        *((name, c_int32) for name in ("v", "m", "centroids", "wide_codes")),
    ]


@dataclass
class Prepared:
    """Codes uint8 [K/v, m, M] for tables, uint16 [M, K/v, m] for centroids; `dequantiser` for large batches."""

    spec: CodebookSpec
    arguments: library.Arguments
    dequantiser: Dequantiser


class Aqlm(Kernel):
    """AQLM 1x16, 2x8 and any number of codebooks and bits."""

    name = "aqlm"
    engine = "cpu"
    _large = DequantDense()

    def supports(self, spec: Spec, n: int, dtype: np.dtype, device: str) -> str | None:
        if not isinstance(spec, CodebookSpec):
            return "it multiplies CodebookWeights"
        if spec.config.g != -1:
            return f"g={spec.config.g}: AQLM has one scale a row, g=-1"
        if len(spec.part_rows) > 1:
            return f"{len(spec.part_rows)} concatenated parts: AQLM has one set of codebooks"
        return None

    def prepare(self, weight: Weight, device: str) -> Prepared:
        assert isinstance(weight, CodebookWeight)
        spec, config = weight.spec, weight.config
        codes, books = weight.codes, weight.part_codebooks[0]
        if config.b <= 8:
            codes = np.ascontiguousarray(codes.transpose(1, 2, 0))
            books = books.astype(np.float32)
        arguments = library.Arguments(
            AqlmArgs,
            {"codes": codes, "codebooks": books, "scales": weight.scales},
            rows=spec.out_features,
            in_features=spec.in_features,
            v=config.v,
            m=config.m,
            centroids=config.centroids,
            wide_codes=int(config.b > 8),
        )
        return Prepared(spec, arguments, self._large.prepare(weight, device))

    def workspace(self, spec: Spec, n: int, device: str) -> int:
        assert isinstance(spec, CodebookSpec)
        tables = spec.vectors * spec.config.m * spec.config.centroids if spec.config.b <= 8 else 0
        matvec = 4 * (spec.in_features + spec.out_features + tables)
        # A plan for n rows also runs fewer, and those one at a time.
        return max(matvec, self._large.workspace(spec, n, device)) if n > MATVEC_ROWS else matvec

    def run(self, prepared: Prepared, x: Any, out: Any, workspace: Any, stream: Any) -> None:
        if len(x) > MATVEC_ROWS:
            return self._large.run(prepared.dequantiser, x, out, workspace, stream)
        multiply = library.function(_SOURCE, "aqlm", AqlmArgs)
        if multiply is None:
            return _run_numpy(prepared, x, out)
        prepared.arguments.call(multiply, x, out, workspace)

    def cost(self, spec: Spec, n: int, dtype: np.dtype) -> Cost:
        assert isinstance(spec, CodebookSpec)
        if n > MATVEC_ROWS:
            return self._large.cost(spec, n, dtype)
        config, (m_rows, k) = spec.config, spec.shape
        narrow = config.b <= 8
        codes = m_rows * spec.vectors * config.m
        tables = spec.vectors * config.m * config.centroids if narrow else 0
        books = config.m * config.centroids * config.v * (4 if narrow else 2)
        once = codes * (1 if narrow else 2) + books + 4 * tables + 2 * m_rows
        return Cost(
            bytes_read=n * (once + k * dtype.itemsize),
            bytes_written=n * (4 * tables + m_rows * dtype.itemsize),
            lookups=n * codes,
            multiply_adds=n * (tables * config.v if narrow else codes * config.v),
            launches=n * (2 if narrow else 1),
        )


def _run_numpy(prepared: Prepared, x: Any, out: Any) -> None:
    """The same where there is no compiler."""
    spec, config, arrays = prepared.spec, prepared.spec.config, prepared.arguments.arrays
    with np.errstate(over="ignore", invalid="ignore"):
        x32 = x.astype(np.float32).reshape(len(x), spec.vectors, config.v)
        y = np.zeros((len(x), spec.out_features), np.float32)
        for j in range(spec.vectors):
            for c, book in enumerate(arrays["codebooks"]):
                codes = arrays["codes"][j, c] if config.b <= 8 else arrays["codes"][:, j, c]
                y += (x32[:, j] @ book.astype(np.float32).T)[:, codes]
        out[...] = y * arrays["scales"][:, 0].astype(np.float32)
