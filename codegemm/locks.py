"""A lock that a forked child may take, whatever the parent's other threads held."""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakSet


class ForkSafeLock:
    """A reentrant lock, new in a forked child: the thread that held it does not exist there."""

    def __init__(self) -> None:
        self.renew()
        _all.add(self)

    def renew(self) -> None:
        """Be a lock that nobody holds."""
        self._lock = threading.RLock()

    def __reduce__(self) -> Any:
        return ForkSafeLock, ()  # a copy of what it guards has a lock of its own

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: Any) -> None:
        try:  # noqa: SIM105 - at once, even where the stack is exhausted
            self._lock.release()
        except RuntimeError:  # forked within the lock: the child has a new one
            pass


_all: WeakSet[ForkSafeLock] = WeakSet()  # for what is registered at a fork stays for good


def _renew() -> None:
    for lock in _all:
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
