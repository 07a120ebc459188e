"""A weight as tensors, the ones that a file holds, and the text that says what they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from codegemm.arrays import from_torch, to_torch
from codegemm.devices import CPU, device_of, to_host
from codegemm.formats.format import described, random_weight
from codegemm.formats.native import Stored
from codegemm.formats.weight import Weight, adopted, concat


@dataclass(frozen=True)
class Part:
    """A weight among others: the names of its tensors, in order, what a file says of it, and of which version a file
    with it is."""

    names: tuple[str, ...]
    description: Mapping[str, Any]
    version: int

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        rows, columns = self.description["shape"]
        return rows, columns

    def weight(self, array: Callable[[str], Any]) -> Weight:
        """That of the arrays that `array` has by name; ValueError where they don't make one."""
        return described(self.description).weight.from_stored(self.description, array)


@dataclass(frozen=True)
class Layout:
    """What tensors are: those of one weight, or of several that share x, whose outputs lie side by side."""

    parts: tuple[Part, ...]
    shape: tuple[int, int]

    @property
    def names(self) -> tuple[tuple[int, str], ...]:
        """Of each tensor the part and its name in that."""
        return tuple((number, name) for number, part in enumerate(self.parts) for name in part.names)

    @property
    def rows(self) -> list[slice]:
        """The outputs of each part."""
        ends = accumulate((part.shape[0] for part in self.parts), initial=0)
        return [slice(*bounds) for bounds in pairwise(ends)]


@lru_cache(maxsize=1024)
def parse(text: str) -> Layout:
    """The layout of a text that `text_of` wrote."""
    parts = tuple(Part(tuple(each["tensors"]), each["stored"], each["version"]) for each in json.loads(text))
    return Layout(parts, (sum(part.shape[0] for part in parts), parts[0].shape[1]))


def text_of(stored: Stored) -> str:
    """The layout of one weight, the same for all that differ in their numbers alone."""
    return json.dumps([{"tensors": list(stored.tensors), "stored": stored.description, "version": stored.version}])


def blank(shape: tuple[int, int], config: str) -> tuple[dict[str, Any], str]:
    """The tensors of a weight [out_features, in_features] as a file has them, on the meta device, and their layout.

    ValueError where the shape can't be stored so.
    """
    import torch

    forms, layout = _forms(shape, config)
    return {name: torch.empty(form, dtype=dtype, device="meta") for name, (form, dtype) in forms.items()}, layout


@lru_cache(maxsize=1024)
def _forms(shape: tuple[int, int], config: str) -> tuple[dict[str, tuple[tuple[int, ...], Any]], str]:
    """Shapes and dtypes of the tensors, and their layout: those of any weight of that shape and configuration."""
    stored = random_weight(shape, config).stored()
    tensors = {name: tensor_of(array) for name, array in stored.tensors.items()}
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}, text_of(stored)


def joined(texts: Sequence[str]) -> str:
    """The layout of several weights that share x."""
    return json.dumps([part for text in texts for part in json.loads(text)])


def tensor_of(array: Any) -> Any:
    """A tensor on the CPU with the numbers of a file's array; the same memory where that can be written to."""
    return to_torch(array)


def weight_of(tensors: Sequence[Any], layout: Layout) -> Weight:
    """The weight on the memory of the tensors, which must not be written to as long as it is there (on a GPU a copy).

    ValueError, TypeError for tensors that don't make one.
    """
    arrays = {
        place: adopted(from_torch(tensor, place[1]) if device_of(tensor) == CPU else to_host(tensor, place[1]))
        for place, tensor in zip(layout.names, tensors, strict=True)
    }
    weights = [
        part.weight(lambda name, number=number: arrays[number, name])  # type: ignore[misc]
        for number, part in enumerate(layout.parts)
    ]
    weight: Weight = concat(weights)
    return weight.to(device_of(tensors[0]))
