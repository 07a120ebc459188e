"""A lock that a forked child may take, whatever the parent's other threads held."""

from __future__ import annotations

import os
import threading
from typing import Any


class ForkSafeLock:
    """A reentrant lock, new in a forked child: the thread that held it does not exist there."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: Any) -> None:
        try:  # noqa: SIM105 - at once, even where the stack is exhausted
            self._lock.release()
        except RuntimeError:  # forked within the lock: the child has a new one
            pass
