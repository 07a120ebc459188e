"""Quantised matrices of a model that is being made, in the folder beside it: what another run goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from codegemm import cache
from codegemm.formats.native import Stored
from codegemm.formats.weight import Weight
from codegemm.hf.blockwise.matrix import Layer
from codegemm.quantize.parts import Parts


class Kept:
    """Of one model. stored: all that were found or kept, by the layers' names, to be read when they are written."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.stored: dict[str, Stored] = {}
        self._keys: dict[str, str] = {}
        self._found: set[str] = set()

    @property
    def resumed(self) -> int:
        """How many layers were found."""
        return len(self._found)

    def find(self, key: str, name: str) -> tuple[Weight, Layer] | None:
        """A weight of this name that depends on what `key` says, and what was said of it; None where there is none."""
        own = cache.key(key, name)
        stored, note = self._read(own)
        if stored is None:
            return None
        said: dict[str, Any] = json.loads(note)
        self.stored[name], self._keys[name] = stored, own
        self._found.add(name)
        return self.parts.weight(own), Layer(**{**said, "shape": tuple(said["shape"])})

    def has(self, key: str, names: Iterable[str]) -> bool:
        """Whether `find` has something for each name."""
        return all(self._read(cache.key(key, name))[0] is not None for name in names)

    def find_all(self, key: str, names: Iterable[str]) -> list[tuple[Weight, Layer]] | None:
        """The same of several names; None, and none of them is taken, where one is lacking."""
        names = list(names)
        if not self.has(key, names):
            return None
        found = [self.find(key, name) for name in names]
        return [each for each in found if each is not None]

    def weight(self, name: str) -> Weight:
        """One of `stored`, in memory."""
        return self.parts.weight(self._keys[name])

    def weights(self, names: Iterable[str]) -> dict[str, Weight]:
        """Of these, in memory."""
        return {name: self.weight(name) for name in names}

    def _read(self, own: str) -> tuple[Stored | None, str]:
        """One that has a note, and that."""
        stored, note = self.parts.find(own), self.parts.note(own)
        return (stored, note) if note else (None, "")

    def keep(self, key: str, weight: Weight, layer: Layer) -> None:
        """Write one; CheckpointError where that fails."""
        own = cache.key(key, layer.name)
        self._keys[layer.name] = own
        self.stored[layer.name] = self.parts.keep(own, weight, json.dumps(asdict(layer)))
