"""What is registered by name: the package's own, and what third parties add by a call or an entry point."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any, Generic, TypeVar

from codegemm.locks import ForkSafeLock

T = TypeVar("T")

_loading = ForkSafeLock()  # one for all registries: what one of them loads may look into another


class Registry(Generic[T]):
    """Values by name, in the order of registration.

    what: they are, in messages. group: of entry points, each of which names one (or a class without arguments for
    `__init__`) and is given to `register` at the first look. own: registers the package's own before all others.
    changed: is called behind every change.
    """

    def __init__(
        self,
        what: str,
        group: str,
        register: Callable[[Any], object],
        own: Callable[[], object] = lambda: None,
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        self._what, self._group, self._register, self._own, self._changed = what, group, register, own, changed
        self._values: dict[str, T] = {}
        self._lock = ForkSafeLock()
        self._has_own = self._loaded = False
        self._seen: set[str] = set()  # entry points
        self._here = threading.local()

    def add(self, name: str, value: T, replace: bool = False) -> None:
        """ValueError for a name that is taken, unless the other is to be replaced."""
        with self._lock:
            if name in self._values and not replace:
                raise ValueError(f"{self._what} {name} is registered already; pass replace=True")
            self._values[name] = value
            self._changed()

    def remove(self, name: str) -> None:
        """KeyError for a name that there isn't."""
        self._load()
        with self._lock:
            del self._values[name]
            self._changed()

    def all(self) -> list[T]:
        """Every value, those of entry points too."""
        self._load()
        return self.so_far()

    def so_far(self) -> list[T]:
        """Those registered, before entry points are looked at."""
        with self._lock:
            if not self._has_own:
                self._has_own = True  # what they ask for while they join is what there is so far
                try:
                    self._own()
                except BaseException:
                    self._has_own = False
                    raise
            return list(self._values.values())

    def _load(self) -> None:
        """Look at the entry points, once; while one is imported, what it asks for is what there is so far."""
        self.so_far()
        if self._loaded or getattr(self._here, "loads", False):
            return
        with _loading:
            self._here.loads = True
            try:
                for entry in metadata.entry_points(group=self._group):
                    if entry.value not in self._seen:
                        self._seen.add(entry.value)
                        self._join(entry)
                self._loaded = True
            finally:
                self._here.loads = False

    def _join(self, entry: metadata.EntryPoint) -> None:
        try:
            value = entry.load()
            self._register(value() if isinstance(value, type) else value)
        except Exception as error:  # somebody else's package must not break this one
            warnings.warn(f"{self._what} {entry.name!r} of {entry.value!r} was left out: {error}", stacklevel=2)
