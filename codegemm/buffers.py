"""What products work in: a workspace, and room for x and y where kernels don't take them as they are."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from codegemm.devices import CPU, Device
from codegemm.engines.cpu import library as cpu
from codegemm.engines.cuda import library as cuda

_ALIGNED = 256


class Parts(NamedTuple):
    """Bytes: a kernel's workspace, and room for x and for y; none of these where they are allocated anew."""

    workspace: Any
    x: Any = None
    y: Any = None


class Buffers:
    """Those of a plan: on a GPU its own, on the CPU this thread's as long as a call takes."""

    def __init__(self, device: Device, workspace_bytes: int, x_bytes: int, y_bytes: int) -> None:
        sizes = (-(-size // _ALIGNED) * _ALIGNED for size in (workspace_bytes, x_bytes, y_bytes))
        self._ends = tuple(itertools.accumulate(sizes))
        self._own = None if device == CPU else cuda.new_workspace(self._ends[-1])

    def take(self) -> Any:
        """The workspace, with the rest behind it."""
        return cpu.take_workspace(self._ends[-1]) if self._own is None else self._own

    def give_back(self, buffer: Any) -> None:
        """What was taken."""
        if self._own is None:
            cpu.give_back(buffer)

    def parts(self, buffer: Any) -> Parts:
        """Of what was taken."""
        first, second, third = self._ends
        return Parts(buffer[:first], buffer[first:second], buffer[second:third])
