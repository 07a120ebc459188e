"""What a module that torch.compile traces must tell apart: one trace from the next."""

from __future__ import annotations

from typing import Any
from weakref import ref

import torch


class Traces:
    """The traces that asked, one after another."""

    def __init__(self) -> None:
        self._last: ref[Any] | None = None

    def is_new(self) -> bool:
        """Whether the last that asked was another one, or none."""
        trace = torch._guards.TracingContext.try_get()
        new = self._last is None or self._last() is not trace
        self._last = None if trace is None else ref(trace)
        return new
