"""LUT-GEMM's way of multiplying (Park et al., 2022): tables of the sums of +-x for all signs of some columns, shared by
all planes and rows, looked up by codes.

    y[r] = sum over groups G and planes i of scale[r, i, G] * sum over codes c of G of table[c][code[r, i, c]]

A code is eight signs here, whatever v is: a weight's codes are strings of bits, cut anew. A group has whole codes, the
last one with fewer signs where eight don't divide it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codegemm.baselines import planes
from codegemm.devices import Device
from codegemm.engines import declarations
from codegemm.engines.cpu import costs, isa, library
from codegemm.engines.cpu.costs import Work
from codegemm.engines.cpu.kernel import CpuKernel, Prepared
from codegemm.formats import bits
from codegemm.formats.codebook import CodebookWeight
from codegemm.formats.codebook_config import all_signs
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Cost, Product

SOURCE = Path(__file__).with_name("lutgemm.cpp")
CODE_SIGNS = declarations.constant(SOURCE, "code_signs")
TILE_CODES = declarations.constant(SOURCE, "tile_codes")
BLOCK_ROWS = declarations.constant(SOURCE, "block_rows")
SLICE_ROWS = declarations.constant(SOURCE, "slice_rows")
# What the source reads, [slice]..: of codes [block, row, plane, tile, code], of scales [block, row, plane, group].
_CODES_ORDER, _SCALES_ORDER = (3, 0, 2, 4, 1), (3, 2, 0, 1)


class Lutgemm(CpuKernel[Spec, Weight]):
    """Planes of signs, any number of them and any v and g, in float32 throughout."""

    name = "lutgemm"
    weights = CodebookWeight
    folds = True
    automatic = True
    rearranged = ("codes",)
    source, entry, structure = SOURCE, "lutgemm", declarations.structure(SOURCE, "LutgemmArgs")

    def refuses(self, product: Product[Spec], device: Device) -> str | None:
        return planes.unfit(product.spec) or super().refuses(product, device)

    def is_automatic(self, product: Product[Spec]) -> bool:
        """Where it was compared with other kernels."""
        return costs.measured(self.name)

    def prepare(self, weight: Weight, device: Device) -> Prepared[Spec]:
        core, (count, spec) = planes.core_of(weight), planes.planes_of(weight.spec)
        signs = bits.pack(core.codes.reshape(-1, spec.group_vectors), spec.config.v).reshape(len(core.codes), count, -1)
        padded = np.pad(signs, ((0, 0), (0, 0), (0, -signs.shape[2] % TILE_CODES)))
        arrays: dict[str, npt.NDArray] = {
            "codes": arrange(padded.reshape(len(signs), count, -1, TILE_CODES), _CODES_ORDER),
            "scales": arrange(core.scales.reshape(len(signs), count, -1), _SCALES_ORDER),
        }
        numbers = {"rows": spec.out_features, "planes": count, "groups": spec.groups // count}
        return Prepared(weight.spec, library.Arguments(self.structure, arrays, weight.spec, **numbers))

    def restore(self, prepared: Prepared[Spec], name: str) -> npt.NDArray[np.uint8]:
        _, spec = planes.planes_of(prepared.spec)
        signs = _signs(prepared).reshape(spec.out_features * spec.groups, -1)
        return bits.unpack(signs, spec.group_vectors, spec.config.v).reshape(spec.out_features, spec.vectors, 1)

    def run_numpy(self, prepared: Prepared[Spec], x: npt.NDArray, out: npt.NDArray, workspace: object) -> None:
        count, spec = planes.planes_of(prepared.spec)
        groups = spec.out_features, count, spec.groups // count
        signs, scales = _signs(prepared), restore(prepared.arguments.arrays["scales"], groups, _SCALES_ORDER)
        columns = x.astype(np.float32).reshape(len(x), spec.groups // count, -1)
        columns = np.pad(columns, ((0, 0), (0, 0), (0, -columns.shape[2] % CODE_SIGNS)))
        entries = all_signs(CODE_SIGNS).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for i, vectors in enumerate(columns.reshape(len(x), -1, CODE_SIGNS)):
                table = vectors @ entries.T
                for first in range(0, spec.out_features, SLICE_ROWS):
                    some = slice(first, first + SLICE_ROWS)
                    found = table[np.arange(len(table)), signs[some]]
                    sums = found.reshape(*scales[some].shape, -1).sum(-1)
                    out[i, some] = np.einsum("rpg,rpg->r", sums, scales[some].astype(np.float32))

    def cost(self, product: Product[Spec], device: Device) -> Cost:
        count, spec = planes.planes_of(product.spec)
        rows = -(-spec.out_features // BLOCK_ROWS) * BLOCK_ROWS
        codes = count * -(-_row_codes(product.spec) // TILE_CODES) * TILE_CODES
        # The smallest tables are of half a code.
        made = product.n * _row_codes(product.spec) * (2 << CODE_SIGNS // 2)
        lookups = product.n * spec.out_features * count * _row_codes(product.spec)
        return Cost(rows * (codes + 2 * spec.groups) + product.x_bytes, product.y_bytes, made, lookups)

    def work(self, product: Product[Spec]) -> tuple[Work, ...]:
        """Lookups and tables, each for as many rows of x as have theirs at a time."""
        count, _ = planes.planes_of(product.spec)
        codes = _row_codes(product.spec)
        lookups, slices = product.spec.out_features * count, -(-product.spec.out_features // SLICE_ROWS)
        sizes = _ROWS_AT_A_TIME.get(isa.chosen().name, _FEW_ROWS)
        turns, left = divmod(product.n, max(sizes))
        counts: Counter[str] = Counter(product=1)
        for rows in [max(sizes)] * turns + [left] * bool(left):
            size = min(each for each in sizes if each >= rows)
            counts[f"lookup for {size}"] += codes * lookups
            counts[f"table for {size}"] += codes * slices
        return (Work(self.name, counts),)


_FEW_ROWS = (1, 2, 3, 4)
_ROWS_AT_A_TIME = {"avx2": (1, 2, 3, 4, 8), "neon": (1, 4), "plain": (1, 4)}  # of x, where it isn't up to four


def arrange(rows: npt.NDArray, order: tuple[int, ...]) -> npt.NDArray:
    """[M, ..] -> flat: slice after slice, the axes of each in another order, [blocks, rows of a block, ..] before."""
    padded = np.pad(rows, ((0, -len(rows) % BLOCK_ROWS), *((0, 0),) * (rows.ndim - 1)))
    return np.concatenate([part.ravel() for part in _slices(padded, order)])


def restore(arranged: npt.NDArray, shape: tuple[int, ...], order: tuple[int, ...]) -> npt.NDArray:
    """The inverse of `arrange`: [M, ..] of this shape."""
    padded, at = np.empty((shape[0] + -shape[0] % BLOCK_ROWS, *shape[1:]), arranged.dtype), 0
    for part in _slices(padded, order):
        part[...] = arranged[at : at + part.size].reshape(part.shape)
        at += part.size
    return padded[: shape[0]]


def _slices(padded: npt.NDArray, order: tuple[int, ...]) -> Iterator[npt.NDArray]:
    """Views of slices of rows in the order of what is arranged."""
    for first in range(0, len(padded), SLICE_ROWS):
        some = padded[first : first + SLICE_ROWS]
        yield some.reshape(-1, BLOCK_ROWS, *padded.shape[1:]).transpose(order)


def _row_codes(spec: Spec) -> int:
    """Codes of a row in a plane."""
    count, core = planes.planes_of(spec)
    return core.groups // count * -(-core.in_features // core.groups // CODE_SIGNS)


def _signs(prepared: Prepared[Spec]) -> npt.NDArray[np.uint8]:
    """Codes [M, planes, codes of a row]."""
    count, spec = planes.planes_of(prepared.spec)
    each = _row_codes(prepared.spec)
    shape = spec.out_features, count, -(-each // TILE_CODES), TILE_CODES
    return restore(prepared.arguments.arrays["codes"], shape, _CODES_ORDER).reshape(*shape[:2], -1)[..., :each]
