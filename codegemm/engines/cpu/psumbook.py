"""The Psumbook kernel (CodeGEMM): tables of a K tile in L1, codes streamed once, scales per group."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm.devices import Device
from codegemm.engines import declarations
from codegemm.engines.cpu import isa, library
from codegemm.engines.cpu import psumbook_layout as layout
from codegemm.engines.cpu.costs import Work
from codegemm.engines.cpu.kernel import CpuKernel
from codegemm.engines.cpu.psumbook_layout import SOURCE, Prepared, cut_for
from codegemm.engines.cpu.rounding import error_margin, parts_of, row_sizes
from codegemm.formats.codebook import CodebookSpec, CodebookWeight
from codegemm.kernel import Cost, Product

BATCH = declarations.constant(SOURCE, "batch")  # rows of x that share tables of words
MAX_B = 8
FINISHED_ROWS = declarations.constant(SOURCE, "finished_rows")  # that a task adds up at the end
_SEEN = 128  # rows and positions whose codes are compared
_BYTE_STEPS = declarations.constant(SOURCE, "byte_steps")  # of a table whose entries are bytes

# Of 16 rows of x and of what is left of them, those up to which each has tables of bytes, by instruction set and bytes
# of an entry; more share words.
_PERMUTED = {2: 10, 1: 16}
_BYTES_UP_TO = {
    "amx": _PERMUTED,
    "bf16": _PERMUTED,
    "vbmi": _PERMUTED,
    "vnni": {2: 8, 1: 12},
    "avx512": {2: 8, 1: 12},
    "avx2": {2: 2, 1: 3},
    "neon": {2: 2, 1: 3},
}
PsumbookArgs = declarations.structure(SOURCE, "PsumbookArgs")


def _scaled(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Rows of x under powers of two that bring their largest numbers near 1, and the inverse powers [n, 1]."""
    with np.errstate(invalid="ignore"):
        exponents = np.clip(np.frexp(abs(x).max(1, keepdims=True))[1], -126, 126)
        return np.ldexp(x, -exponents), np.ldexp(np.float32(1), exponents)


def _shared(weight: CodebookWeight, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Which part of the entries that a row looks up another does, too: of some rows of codes [M, vectors, m].

    Centroids that differ by less than a step of bytes count as one: entries that are alike are rounded alike.
    """
    books = weight.part_codebooks.astype(np.float32)
    step = 2 * np.linalg.norm(books, axis=-1).max() / _BYTE_STEPS or 1
    places = np.rint(books / step).reshape(-1, books.shape[-1]) + 0.0  # which leaves no -0
    alike = np.unique(places, axis=0, return_inverse=True)[1].reshape(books.shape[:3]).astype(np.int32)
    rows = np.arange(0, len(codes), -(-len(codes) // _SEEN))
    some = codes.reshape(len(codes), -1)[rows]
    positions = np.arange(0, some.shape[1], -(-some.shape[1] // _SEEN))
    named = alike[parts_of(weight, rows)[:, None], positions % books.shape[1], some[:, positions]]
    return np.array([np.count_nonzero(named == row, axis=1) for row in named]) / len(positions)


class Psumbook(CpuKernel[CodebookSpec, CodebookWeight]):
    """Builds the table of all centroids' inner products with x, tile by tile, and gathers by the codes."""

    name = "psumbook"
    weights = CodebookWeight
    automatic = True
    source, entry, structure = SOURCE, "psumbook", PsumbookArgs
    rearranged = ("codes",)
    planes = 2  # bytes of an entry

    def cut(self, spec: CodebookSpec) -> layout.Cut:
        """How a product is cut."""
        return cut_for(spec)

    def refuses(self, product: Product[CodebookSpec], device: Device) -> str | None:
        b = product.spec.config.b
        if b > MAX_B:
            return f"b={b}: its tables hold 2^b entries a position, b up to {MAX_B}"
        return super().refuses(product, device)

    def prepare(self, weight: CodebookWeight, device: Device) -> Prepared:
        """Codes [tile][block][position][row of the block], codebooks [parts, m, v, entries] in float32, scales
        [groups, padded rows] and the squares of them, summed over a slice [slices, groups], and the cut."""
        if isinstance(weight.held, Prepared):
            return weight.held
        spec = weight.spec
        plan, codes = self.cut(spec), weight.codes
        books = weight.part_codebooks.astype(np.float32).swapaxes(-1, -2)
        # Entries that no code names must not be larger than those that some do.
        padded = library.empty((*books.shape[:-1], layout.table_entries(spec.config.b)), np.float32)
        padded[..., : books.shape[-1]] = books
        padded[..., books.shape[-1] :] = books[..., -1:]
        scales = library.empty((spec.groups, plan.padded_rows), weight.scales.dtype)
        scales[...] = plan.pad(weight.scales).T
        squares = [np.square(weight.scales[first:end].astype(np.float32)).sum(0) for _, first, end, *_ in plan.slices]
        arguments = library.Arguments(
            PsumbookArgs,
            {
                "codes": layout.arrange_codes(codes, plan),
                "codebooks": padded,
                "scales": scales,
                "squares": np.array(squares, np.float32),
                "tiles": plan.tiles,
                "pieces": plan.pieces,
                "slices": plan.slices,
            },
            spec,
            spec.config,
            plan,
            piece_count=len(plan.pieces) - 1,
            slice_count=len(plan.slices),
            rows=spec.out_features,
            entries=padded.shape[-1],
            margin=error_margin(row_sizes(weight), _shared(weight, codes)),
        )
        return Prepared(spec, arguments)

    def restore(self, prepared: Prepared, name: str) -> npt.NDArray[np.uint8]:
        return layout.restore_codes(prepared.arguments.arrays[name], prepared.spec)

    def workspace(self, product: Product[CodebookSpec], device: Device) -> int:
        spec, plan = product.spec, self.cut(product.spec)
        pieces, slices = len(plan.pieces) - 1, len(plan.slices)
        finishing = slices * -(-int(np.diff(plan.slices[:, 1:3]).max()) // FINISHED_ROWS)
        floats = 2 + 2 * spec.in_features + pieces * plan.padded_rows
        return BATCH * (8 * (pieces * slices + finishing) + 4 * floats + spec.vectors)

    def parameters(self) -> tuple[int, ...]:
        return self.planes, self._bytes_up_to()

    def run_numpy(self, prepared: Prepared, x: Any, out: Any, workspace: Any) -> None:
        """The same algorithm where there is no compiler: one table of floats a tile, gathered for a block at once."""
        spec, config, arrays = prepared.spec, prepared.spec.config, prepared.arguments.arrays
        plan = self.cut(spec)
        x32, powers = _scaled(x.astype(np.float32))
        x32 = x32.reshape(len(x), spec.vectors, config.v)
        group = spec.group_vectors
        row_at = layout.place_in_group()
        sums, offset = np.zeros((len(x), plan.padded_rows), np.float32), 0
        part_of = {
            first: part for part, _, _, begin, stop in plan.slices for first in range(begin, stop, layout.BLOCK_ROWS)
        }
        with np.errstate(over="ignore", invalid="ignore"):
            for first, end in pairwise(plan.tiles):
                width = int(end - first) * config.m
                step = min(end - first, group) * config.m
                # [parts, n, position, centroid]
                tables = np.einsum("njt,pmti->pnjmi", x32[:, first:end], arrays["codebooks"])
                tables = tables.reshape(len(tables), len(x), width, -1)
                for begin, stop in plan.blocks():
                    codes = arrays["codes"][offset : offset + width * (stop - begin)].reshape(
                        width, -1, layout.GROUP_ROWS
                    )
                    offset += codes.size
                    by_row = np.empty_like(codes)
                    by_row[:, :, row_at] = codes
                    entries = tables[part_of[begin]][:, np.arange(width), by_row.reshape(width, -1).T]
                    by_group = entries.reshape(len(x), stop - begin, -1, step).sum(-1)
                    scales = arrays["scales"][first // group : first // group + by_group.shape[-1], begin:stop]
                    sums[:, begin:stop] += np.einsum("nrg,gr->nr", by_group, scales.astype(np.float32))
            for _, row, end_row, begin, _ in plan.slices:
                out[:, row:end_row] = sums[:, begin : begin + end_row - row] * powers

    def cost(self, product: Product[CodebookSpec], device: Device) -> Cost:
        spec, config = product.spec, product.spec.config
        rows = self.cut(spec).padded_rows
        codes = rows * spec.vectors * config.m
        books = 4 * len(spec.part_rows) * config.m * config.v * layout.table_entries(config.b)
        read = codes + books + 2 * rows * spec.groups + product.x_bytes
        # Each entry of a table is an inner product of v weights; parts of the rows have codebooks of their own.
        made = product.n * len(spec.part_rows) * spec.in_features * config.m * layout.table_entries(config.b)
        lookups = product.n * spec.out_features * spec.vectors * config.m
        return Cost(read, product.y_bytes, made, lookups)

    def work(self, product: Product[CodebookSpec]) -> tuple[Work, ...]:
        """Lookups and the entries of tables, for each row of x that has its own and for those that share words."""
        spec, n, limit = product.spec, product.n, self._bytes_up_to()
        in_bytes = n if limit >= BATCH else n % BATCH if n % BATCH <= limit else 0
        positions = spec.vectors * spec.config.m
        entries = len(self.cut(spec).slices) * positions * layout.table_entries(spec.config.b)

        def work(way: str, times: int) -> Work:
            lookups = times * spec.out_features * positions
            made = times * entries
            return Work(way, {"product": 1, "lookup": lookups, "entry": made, "component": made * spec.config.v})

        ways = {self.name: in_bytes, "psumbook_words": -(-(n - in_bytes) // BATCH)}
        return tuple(work(way, times) for way, times in ways.items() if times)

    def _bytes_up_to(self) -> int:
        return _BYTES_UP_TO.get(isa.chosen().name, {}).get(self.planes, 1)


class PsumbookFast(Psumbook):
    """The same with entries of one byte, for `precision="fast"`: an error of about 1.2e-2 of the output's norm, at most
    3e-2.

    Where more rows of x share tables of words, those are `psumbook`'s.
    """

    name = "psumbook_fast"
    automatic = False
    precision = "fast"
    planes = 1
