"""The dequantising kernel: decode a block of rows that stays in cache, multiply it by every row of x."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from ctypes import byref, c_int, c_void_p
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from codegemm.devices import Device
from codegemm.engines import cut, declarations
from codegemm.engines.cpu import bfloat16, compiler, integers, isa, kernel, library, psumbook_layout
from codegemm.engines.cpu.costs import Work
from codegemm.engines.cpu.kernel import CpuKernel
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Cost, Product

SOURCE = compiler.SOURCES / "dequant.cpp"
_LANES = declarations.constant(SOURCE, "lanes")
_TILE_STEP = declarations.constant(SOURCE, "tile_step")
_USUAL_TILE = declarations.constant(SOURCE, "usual_tile")
MAX_BLOCK_ROWS = declarations.constant(SOURCE, "max_block_rows")
MAX_TILE = declarations.constant(SOURCE, "max_tile")
FEW_ROWS = declarations.constant(SOURCE, "few_rows")  # of x, multiplied by dot products; more lie in panels
PANEL_ROWS = declarations.constant(SOURCE, "panel_rows")
BATCH_ROWS = PANEL_ROWS * declarations.constant(SOURCE, "max_panels")
_SLICE_BLOCKS = 8
SLICE_ROWS = _SLICE_BLOCKS * MAX_BLOCK_ROWS
DequantArgs = declarations.structure(SOURCE, "DequantArgs")
BFLOAT16 = ("amx", "bf16")  # instruction sets with products of it
Rounded = Literal["integers", "bfloat16", "two bfloat16"]


@dataclass
class Prepared(kernel.Prepared[CodebookSpec]):
    """The weight's codes as it holds them and its own scales, centroids in float32 where they are few, row blocks."""

    weight: CodebookWeight
    rounded: Rounded | None

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        return prepare(copy.deepcopy(self.weight, memo), self.rounded)  # whose arrays the arguments point to again


def prepare(weight: CodebookWeight, rounded: Rounded | None = None) -> Prepared:
    """The form that this kernel and `dequant_dense` read: codes as they are, or in the Psumbook kernel's order if the
    weight has let go of them. rounded: what products of many rows of x round W and x to."""
    spec, config = weight.spec, weight.config
    books = weight.part_codebooks
    codes = _arranged(weight) or {
        "codes": weight.codes,
        "blocks": cut.row_slices(spec.part_rows, MAX_BLOCK_ROWS),
    }
    more, told = _told(weight, rounded)
    arguments = library.Arguments(
        DequantArgs,
        codes | more | {"codebooks": books.astype(np.float32) if config.b <= 8 else books, "scales": weight.scales},
        spec,
        config,
        block_count=len(codes["blocks"]),
        rows=spec.out_features,
        padded_rows=int(codes["places"][-1, 2]) if "places" in codes else 0,
        wide_codes=int(config.b > 8),
        tile_vectors=tile_vectors(config.v),
        **told,
    )
    # Without the weight itself, which keeps this: a cycle would outlive it until the garbage collector runs.
    return Prepared(spec, arguments, weight.twin(), rounded)


def _arranged(weight: CodebookWeight) -> dict[str, npt.NDArray] | None:
    """Codes in the Psumbook kernel's order, the blocks of rows that they are read by and where those lie, if a weight
    holds its codes so."""
    if not isinstance(weight.held, psumbook_layout.Prepared):
        return None
    plan = psumbook_layout.cut_for(weight.spec)
    blocks, places = [], []
    for part, first, end, first_padded, end_padded in plan.slices:
        for row in range(first, end, psumbook_layout.GROUP_ROWS):
            padded = first_padded + row - first
            block = padded - (row - first) % psumbook_layout.BLOCK_ROWS
            blocks.append((part, row, min(row + psumbook_layout.GROUP_ROWS, end)))
            places.append((padded, block, min(block + psumbook_layout.BLOCK_ROWS, end_padded)))
    return {
        "codes": weight.held.arguments.arrays["codes"],
        "blocks": np.array(blocks, np.int32),
        "places": np.array(places, np.int32),
        "tiles": plan.tiles,
    }


def _rounded(spec: CodebookSpec, precision: str) -> Rounded | None:
    """What the chosen instructions round many rows of x to."""
    chosen = isa.chosen()
    if chosen.name == "amx":
        return "bfloat16" if precision == "fast" else "two bfloat16"
    if chosen.name in BFLOAT16 and precision == "fast":
        return "bfloat16"
    return "integers" if "avx512_vnni" in chosen.needs and integers.fits(spec, _TILE_STEP) else None


def _told(weight: CodebookWeight, rounded: Rounded | None) -> tuple[dict[str, npt.NDArray], dict[str, Any]]:
    """Arrays and numbers of DequantArgs for that."""
    if rounded is None:
        return {}, {}
    if rounded == "integers":
        return integers.arrays(weight, _TILE_STEP)
    return bfloat16.expected(weight, 1 if rounded == "bfloat16" else 2)


def tile_vectors(v: int) -> int:
    """k-vectors of a tile: about 256 weights, whole steps of them."""
    step = math.lcm(_TILE_STEP, v)
    return step * max(1, _USUAL_TILE // step) // v


class Dequant(CpuKernel[CodebookSpec, CodebookWeight]):
    """Decodes blocks of W to float32 in cache; any v, m, b, g and any number of rows of x. With AVX512_VNNI many rows
    are multiplied as integers of 16 bits, where scales allow it: an error of about 7e-5 of the output's norm."""

    name = "dequant"
    weights = CodebookWeight
    automatic = True
    source, entry, structure = SOURCE, "dequant", DequantArgs

    def prepare(self, weight: CodebookWeight, device: Device) -> Prepared:
        return prepare(weight, _rounded(weight.spec, self.precision))

    def workspace(self, product: Product[CodebookSpec], device: Device) -> int:
        spec, n = product.spec, product.n
        few = min(n, FEW_ROWS) * (_whole(spec.in_features, _LANES) + spec.out_features)
        panels = min(_whole(n, PANEL_ROWS), BATCH_ROWS) * (_whole(spec.in_features, _TILE_STEP) + 3)  # powers, lost
        return 4 * max(few, panels)

    def run_numpy(self, prepared: Prepared, x: Any, out: Any, workspace: Any) -> None:
        x32 = x.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for start, block in prepared.weight.dense_blocks(np.float32):
                out[:, start : start + len(block)] = x32 @ block.T

    def cost(self, product: Product[CodebookSpec], device: Device) -> Cost:
        return Cost(weight_bytes(product.spec) + product.x_bytes, product.y_bytes, product.multiply_adds)

    def work(self, product: Product[CodebookSpec]) -> tuple[Work, ...]:
        """Vectors that are decoded, of m codes each, multiply-adds, and elements of x and of the output."""
        spec, n = product.spec, product.n
        vectors = -(-n // BATCH_ROWS) * spec.out_features * spec.vectors
        rows, way = _whole(n, PANEL_ROWS), "dequant_panels"
        if self.precision == "fast":
            way = self.name
        elif n <= FEW_ROWS:
            rows, way = n, self.name
        counts = {
            "product": 1,
            "vector": vectors,
            "code": vectors * spec.config.m,
            "multiply-add": rows * spec.out_features * spec.in_features,
            "element": rows * (spec.in_features + spec.out_features),
        }
        return (Work(way, counts),)


class DequantFast(Dequant):
    """The same with W and x rounded to bfloat16, for `precision="fast"`: an error of about 2.4e-3 of the output's norm,
    at most 1e-2. For processors that multiply bfloat16."""

    name = "dequant_fast"
    automatic = False
    precision = "fast"
    entry = "dequant_fast"

    def unavailable(self) -> str | None:
        name = isa.chosen().name
        if name in BFLOAT16:
            return None
        return f"instructions {name}: products of bfloat16 need {' or '.join(BFLOAT16)}"

    def tolerance(self, product: Product[CodebookSpec]) -> float:
        return bfloat16.PROMISED[1]


def weight_bytes(spec: CodebookSpec) -> int:
    """Of codes, codebooks and scales as they are decoded."""
    config = spec.config
    books = len(spec.part_rows) * config.m * config.centroids * config.v * (4 if config.b <= 8 else 2)
    codes = spec.out_features * spec.vectors * config.m * spec.code_bytes
    return codes + books + 2 * spec.out_features * spec.groups


def _whole(count: int, step: int) -> int:
    """The next multiple."""
    return -(-count // step) * step


def decoder() -> Any:
    """The compiled function that decodes blocks of rows: arguments, float32 rows, first and end block; or None."""
    return library.function(SOURCE, "dequantize", DequantArgs, c_void_p, c_int, c_int)


def dense_slices(prepared: Prepared, dense: npt.NDArray[np.float32]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """The dense matrix in slices of rows, by compiled code: (first row, rows), these in `dense` [SLICE_ROWS, K] until
    the next slice."""
    decode, blocks = decoder(), prepared.arguments.arrays["blocks"]
    for first in range(0, len(blocks), _SLICE_BLOCKS):
        end = min(first + _SLICE_BLOCKS, len(blocks))
        row, end_row = int(blocks[first, 1]), int(blocks[end - 1, 2])
        decode(byref(prepared.arguments.filled), library.address(dense), first, end)
        yield row, dense[: end_row - row]
