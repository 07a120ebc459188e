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
    """Those of a plan: on the CPU its own as long as a call takes; on a GPU its own or, where plans share,
    this thread's for a stream, without room for x and y.

    own: the plan's own, or None.
    """

    def __init__(self, device: Device, workspace_bytes: int, x_bytes: int, y_bytes: int, shared: bool = False) -> None:
        self._device = device
        rooms = (0, 0) if shared else (x_bytes, y_bytes)
        sizes = (-(-size // _ALIGNED) * _ALIGNED for size in (workspace_bytes, *rooms))
        self._ends = tuple(itertools.accumulate(sizes))
        self.own = None if shared or device == CPU else cuda.new_workspace(self._ends[-1])

    def find(self, stream: Any) -> Any:
        """On a GPU the workspace with the rest behind it, for a product on that stream (None: CuPy's current one); None
        where it must be made."""
        return cuda.find_workspace(self._device, self._ends[-1], stream) if self.own is None else self.own

    def take(self) -> Any:
        """The same on the CPU, or for CuPy's current stream, made if need be."""
        if self._device == CPU:
            return cpu.take_workspace(self._ends[-1])
        return cuda.workspace(self._device, self._ends[-1]) if self.own is None else self.own

    def give_back(self, buffer: Any) -> None:
        """What was taken."""
        if self._device == CPU:
            cpu.give_back(buffer)

    def parts(self, buffer: Any) -> Parts:
        """Of what was taken."""
        first, second, third = self._ends
        if self._device == CPU:
            buffer = buffer.array
        if first == third:
            return Parts(buffer)
        return Parts(buffer[:first], buffer[first:second], buffer[second:third])
