"""The finished matrices of a model that is being made, in a folder beside it: what another run goes on from.

Each is a file named by a key of everything that it depends on, so that those of other arguments are never taken.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy.typing as npt

from codegemm import cache
from codegemm.calibration import Calibration
from codegemm.errors import CheckpointError
from codegemm.files import File, replace_file
from codegemm.formats.native import Stored, read_stored, write_weights
from codegemm.formats.weight import Weight
from codegemm.quantize.arithmetic import usual
from codegemm.quantize.stored import key_parts, made
from codegemm.storage import load

_NAME, _NOTE = "weight", "note"
# A part, or how far something was that takes long; or one that is being written.
_OURS = re.compile(r"\.?[0-9a-f]{32}\.(safetensors|state)(\.[0-9a-f]{8})?")


def part_key(
    matrix: npt.NDArray, calibration: Calibration | None, config: Any, seed: int, time_limit: float | None
) -> str:
    """Of all that `quantize` makes a weight of."""
    return cache.key(*key_parts(matrix, calibration), made(config), str(seed), str(time_limit), usual(matrix.size))


class Parts:
    """Those of the file or folder `target`. work: a folder for what is put together of them, not made here."""

    def __init__(self, target: Path) -> None:
        self.folder = target.parent / f".{target.name}.parts"
        self.work = self.folder / "whole"

    def __bool__(self) -> bool:
        return self.folder.is_dir() and any(self.folder.iterdir())

    def find(self, key: str) -> Stored | None:
        """One that is there and whole, to be read when it is written."""
        try:
            return read_stored(self._path(key), _NAME)
        except (CheckpointError, KeyError, ValueError):
            return None

    def note(self, key: str) -> str:
        """What was said of one that is there; nothing where that is not so."""
        try:
            return File(self._path(key)).metadata.get(_NOTE, "")
        except CheckpointError:
            return ""

    def keep(self, key: str, weight: Weight, note: str = "") -> Stored:
        """Write one, whole or not at all; as `find` gives it. CheckpointError where that fails."""
        self._make()
        write_weights(self._path(key), {_NAME: weight.stored()}, {}, {_NOTE: note} if note else {})
        kept = self.find(key)
        if kept is None:
            raise CheckpointError(f"{self._path(key)}: was changed while it was written")
        return kept

    def state(self, key: str) -> Path:
        """Where it is kept how far something was that takes long."""
        return self.folder / f"{key}.state"

    def keep_state(self, key: str, content: bytes) -> None:
        """Write such a file, whole or not at all; CheckpointError where that fails."""
        self._make()
        replace_file(self.state(key), [content])

    def remove(self) -> None:
        """All of them, of whatever arguments; the folder, unless somebody else's files are in it."""
        shutil.rmtree(self.work, ignore_errors=True)
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if _OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def weight(self, key: str) -> Weight:
        """One that is there, in memory."""
        return load(self._path(key), _NAME)

    def _make(self) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: could not be made: {error.strerror}") from None

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
