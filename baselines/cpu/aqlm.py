"""AQLM's own way of multiplying (Egiazarian et al., 2024): one row of x at a time, one scale a row.

Up to 8 bits a code, as AQLM does on a CPU: the table of every k-vector and centroid is made first, whole, and the
codes, stored by k-vector, gather from it. The original adds into shared outputs from several threads, which races;
here each thread has rows of its own. Above 8 bits (1x16), as its GPU kernel does: the centroids are fetched and
multiplied. From 7 rows of x on it dequantises and multiplies dense.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codegemm.devices import Device
from codegemm.engines import declarations
from codegemm.engines.cpu import kernel, library
from codegemm.engines.cpu.dequant import Prepared as Dequantiser
from codegemm.engines.cpu.dequant_dense import DequantDense
from codegemm.engines.cpu.kernel import CpuKernel
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Cost, Product

SOURCE = Path(__file__).with_name("aqlm.cpp")
MATVEC_ROWS = 6
AqlmArgs = declarations.structure(SOURCE, "AqlmArgs")


@dataclass
class Prepared(kernel.Prepared[CodebookSpec]):
    """Codes uint8 [K/v, m, M] for tables, uint16 [M, K/v, m] for centroids; `dequantiser` for large batches."""

    dequantiser: Dequantiser


class Aqlm(CpuKernel[CodebookSpec, CodebookWeight]):
    """AQLM 1x16, 2x8 and any number of codebooks and bits."""

    name = "aqlm"
    weights = CodebookWeight
    source, entry, structure = SOURCE, "aqlm", AqlmArgs
    many_rows = DequantDense()

    def refuses(self, product: Product[CodebookSpec], device: Device) -> str | None:
        spec = product.spec
        if spec.config.g != -1:
            return f"g={spec.config.g}: AQLM has one scale a row, g=-1"
        if len(spec.part_rows) > 1:
            return f"{len(spec.part_rows)} concatenated parts: AQLM has one set of codebooks"
        return super().refuses(product, device)

    def prepare(self, weight: CodebookWeight, device: Device) -> Prepared:
        spec, config = weight.spec, weight.config
        codes, books = weight.codes, weight.part_codebooks[0]
        if config.b <= 8:
            codes = np.ascontiguousarray(codes.transpose(1, 2, 0))
            books = books.astype(np.float32)
        arguments = library.Arguments(
            AqlmArgs,
            {"codes": codes, "codebooks": books, "scales": weight.scales},
            spec,
            config,
            rows=spec.out_features,
            wide_codes=int(config.b > 8),
        )
        return Prepared(spec, arguments, self.many_rows.prepare(weight, device))

    def workspace(self, product: Product[CodebookSpec], device: Device) -> int:
        spec = product.spec
        tables = spec.vectors * spec.config.m * spec.config.centroids if spec.config.b <= 8 else 0
        matvec = 4 * (spec.in_features + spec.out_features + tables)
        # A plan for many rows also runs fewer, and those one at a time.
        return max(matvec, self.many_rows.workspace(product, device)) if product.n > MATVEC_ROWS else matvec

    def builds(self, product: Product[CodebookSpec], device: Device) -> Iterable[library.Load]:
        more = self.many_rows.builds(product, device) if product.n > MATVEC_ROWS else ()
        return (*super().builds(product, device), *more)

    def is_one_call(self, n: int) -> bool:
        return n <= MATVEC_ROWS

    def run(self, prepared: Any, x: Any, out: Any, workspace: Any, stream: Any, bias: Any = None) -> None:
        if self.is_one_call(len(x)):
            super().run(prepared, x, out, workspace, stream, bias)
        else:
            self.many_rows.run(prepared.dequantiser, x, out, workspace, stream, bias)

    def run_numpy(self, prepared: Prepared, x: Any, out: Any, workspace: Any) -> None:
        spec, config, arrays = prepared.spec, prepared.spec.config, prepared.arguments.arrays
        with np.errstate(over="ignore", invalid="ignore"):
            x32 = x.astype(np.float32).reshape(len(x), spec.vectors, config.v)
            y = np.zeros((len(x), spec.out_features), np.float32)
            for j in range(spec.vectors):
                for c, book in enumerate(arrays["codebooks"]):
                    codes = arrays["codes"][j, c] if config.b <= 8 else arrays["codes"][:, j, c]
                    y += (x32[:, j] @ book.astype(np.float32).T)[:, codes]
            out[...] = y * arrays["scales"][:, 0].astype(np.float32)

    def cost(self, product: Product[CodebookSpec], device: Device) -> Cost:
        if product.n > MATVEC_ROWS:
            return self.many_rows.cost(product, device)
        spec, config, n = product.spec, product.spec.config, product.n
        narrow = config.b <= 8
        codes = spec.out_features * spec.vectors * config.m * spec.code_bytes
        tables = 4 * spec.vectors * config.m * config.centroids if narrow else 0
        books = config.m * config.centroids * config.v * (4 if narrow else 2)
        once = codes + books + tables + 2 * spec.out_features
        # Narrow codes look up tables, of which each entry is an inner product of v weights.
        adds = n * tables // 4 * config.v if narrow else product.multiply_adds
        lookups = n * spec.out_features * spec.vectors * config.m if narrow else 0
        return Cost(n * once + product.x_bytes, n * tables + product.y_bytes, adds, lookups)
