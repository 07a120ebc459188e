"""A kernel for codegemm: the inner products of x with all centroids, gathered by the codes, in plain NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from codegemm import CodebookSpec, CodebookWeight, Cost, Kernel, Product


@dataclass
class Prepared:
    """codes [K/v, m, M]; codebooks [parts, m, 2^b, v] and scales [K/g, M] in float32; the part of each row [M]."""

    codes: np.ndarray
    codebooks: np.ndarray
    scales: np.ndarray
    parts: np.ndarray


class Gather(Kernel[CodebookSpec, CodebookWeight]):
    """y[n, r] = sum over k-vectors j and codebooks c of scale[r, j] * (x[n, j] . centroid[c, code[r, j, c]])."""

    name, engine, weights = "gather", "cpu", CodebookWeight

    def prepare(self, weight: CodebookWeight, device: str) -> Prepared:
        return Prepared(
            np.ascontiguousarray(weight.codes.transpose(1, 2, 0)),
            weight.part_codebooks.astype(np.float32),
            np.ascontiguousarray(weight.scales.T, np.float32),
            np.repeat(np.arange(len(weight.spec.part_rows)), weight.spec.part_rows),
        )

    def run(self, prepared: Prepared, x: np.ndarray, out: np.ndarray, workspace: np.ndarray, stream: None) -> None:
        vectors = x.astype(np.float32).reshape(len(x), len(prepared.codes), -1)
        scales = np.repeat(prepared.scales, len(prepared.codes) // len(prepared.scales), axis=0)
        y = np.zeros(out.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for j, codes in enumerate(prepared.codes):
                for books, code in zip(prepared.codebooks.swapaxes(0, 1), codes):
                    table = books @ vectors[:, j].T  # [parts, 2^b, n]: what a Psumbook holds
                    y += (table[prepared.parts, code] * scales[j][:, None]).T
            out[...] = y

    def cost(self, product: Product[CodebookSpec], device: str) -> Cost:
        spec = product.spec
        codes = spec.out_features * spec.vectors * spec.config.m * spec.code_bytes
        tables = 4 * product.n * spec.vectors * spec.config.m * spec.config.centroids * len(spec.part_rows)
        return Cost(codes + tables + product.x_bytes, tables + product.y_bytes)
