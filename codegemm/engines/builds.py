"""What the engines' compilers share: compiled code is kept in the user's cache, made once, and that is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from codegemm import cache as store
from codegemm.locks import ForkSafeLock

_SLOW_BUILD = 1.0
_log = logging.getLogger(__name__)
_locks: dict[str, ForkSafeLock] = {}


class CompilerError(RuntimeError):
    """A compiler is missing, or refused a source; the message says what to install or what it printed."""


def cached(kind: str, key: str, suffix: str, what: str, compile_to: Callable[[Path], object]) -> Path:
    """The cache's entry `key`, made by `compile_to(path)` unless it is there; threads that want the same wait.

    what: is compiled, in the sentence that tells of it, as a warning where it took long. Raises what `compile_to`
    raises.
    """
    # A lock is kept for good, so that only one is made.
    with _locks.get(key) or _locks.setdefault(key, ForkSafeLock()):
        entry = store.lookup(kind, key, suffix)
        if entry:
            return entry
        start = time.perf_counter()
        entry = store.store(kind, key, suffix, compile_to)
        seconds = time.perf_counter() - start
        level = logging.WARNING if seconds > _SLOW_BUILD else logging.INFO
        _log.log(level, "compiled %s in %.1f s, kept in %s", what, seconds, entry.parent)
        return entry
