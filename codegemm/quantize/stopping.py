"""When to leave off and keep what there is: after a time, or at Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from numbers import Real
from types import FrameType
from typing import Any, Literal, Self

OnInterrupt = Literal["raise", "return"]


def check(time_limit: object, on_interrupt: object = "raise") -> None:
    """TypeError or ValueError for what a time limit or an answer to Ctrl-C can't be."""
    if time_limit is not None:
        if not isinstance(time_limit, Real) or isinstance(time_limit, bool):
            raise TypeError(f"time_limit={time_limit!r}: must be None or seconds, a number of at least 0")
        if not float(time_limit) >= 0:
            raise ValueError(f"time_limit={time_limit!r}: must be None or seconds, at least 0")
    if on_interrupt not in ("raise", "return"):
        raise ValueError(f"on_interrupt={on_interrupt!r}: must be 'raise' or 'return'")


class Stop:
    """Says whether to leave off; as a context it hears Ctrl-C where that is to end the work early.

    time_limit: seconds from now, None for ever. on_interrupt: `return` takes the first Ctrl-C as the wish for the best
    result so far (the second raises KeyboardInterrupt as ever); only the main thread can hear it.
    """

    def __init__(self, time_limit: float | None = None, on_interrupt: OnInterrupt = "raise") -> None:
        check(time_limit, on_interrupt)
        self._end = None if time_limit is None else time.monotonic() + time_limit
        self._listens = on_interrupt == "return" and threading.current_thread() is threading.main_thread()
        self._interrupted = False
        self._previous: Any = None

    def is_due(self) -> bool:
        """Whether to leave off."""
        return self._interrupted or (self._end is not None and time.monotonic() >= self._end)

    def __enter__(self) -> Self:
        if self._listens:
            self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._listens:
            # None is a handler that was not installed from Python.
            signal.signal(signal.SIGINT, self._previous if self._previous is not None else signal.SIG_DFL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
