"""QTIP's way of multiplying (Tseng et al., 2024): rotate x, decode trellis codes and multiply, rotate the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from codegemm.baselines.cpu.incoherent import IncoherentKernel
from codegemm.devices import Device
from codegemm.engines import declarations
from codegemm.engines.cpu.kernel import Prepared
from codegemm.formats import trellis
from codegemm.formats.qtip import QtipSpec, QtipWeight

SOURCE = Path(__file__).with_name("qtip.cpp")
# Of all tiles [M/32, 2, K/32, 2, 8 rows, 2k words]; in a block of 2 x 2 the words at one place lie together.
_BLOCKED = (0, 2, 5, 4, 1, 3)
_ROWS = 8  # of a tile, two rows of weights each, that its steps take one after the other


class Qtip(IncoherentKernel[QtipSpec, QtipWeight]):
    """Decode by a table of pairs, Hadamard transforms of every order, 2, 3 and 4 bit."""

    name = "qtip"
    weights = QtipWeight
    rearranged = ("trellis",)
    source, entry, structure = SOURCE, "qtip", declarations.structure(SOURCE, "QtipArgs")

    def prepare(self, weight: QtipWeight, device: Device) -> Prepared[QtipSpec]:
        words = trellis.unpack(weight.trellis, weight.shape)
        arrays: dict[str, npt.NDArray] = {"codes": block(words, weight.shape), "pairs": signed_pairs(weight.tlut)}
        return Prepared(weight.spec, self.arguments(weight, arrays))

    def restore(self, prepared: Prepared[QtipSpec], name: str) -> npt.NDArray[np.int16]:
        return trellis.pack(unblock(prepared.arguments.arrays["codes"]), prepared.spec.shape)

    def core(self, prepared: Prepared[QtipSpec]) -> npt.NDArray[np.float32]:
        arrays, spec = prepared.arguments.arrays, prepared.spec
        hashes = trellis.hashes(trellis.states(unblock(arrays["codes"]), spec.bits))
        return trellis.untile(arrays["pairs"][hashes >> 6], spec.shape)


def block(words: npt.NDArray[np.uint16], shape: tuple[int, int]) -> npt.NDArray[np.uint16]:
    """Tiles' words [tiles, 16k] as the kernel reads them, [M/32, K/32, 2k, 8, 2, 2]."""
    rows, columns = shape
    tiles = words.reshape(rows // trellis.BLOCK, 2, columns // trellis.BLOCK, 2, _ROWS, -1)
    return np.ascontiguousarray(tiles.transpose(_BLOCKED))


def unblock(blocks: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """The inverse of `block`."""
    tiles = blocks.transpose(np.argsort(_BLOCKED))
    return tiles.reshape(-1, _ROWS * tiles.shape[-1])


def signed_pairs(table: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """[1024, 2]: the pairs of a table [512, 2], and those whose first weight is negated."""
    pairs = table.astype(np.float32)
    return np.concatenate([pairs, pairs * np.array([-1, 1], np.float32)])
