"""A progress bar that costs nothing when it isn't wanted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Self

from codegemm.locks import ForkSafeLock

PATIENCE = 3.0  # seconds that nobody asks for a bar
_lock = ForkSafeLock()


def opener(progress: bool | Callable[[str], Progress] | None) -> Callable[[str], Progress]:
    """What opens a bar by its title: `progress` itself, or bars that are drawn or not.

    None: on a terminal they are, once `PATIENCE` has passed from now on.
    """
    if callable(progress):
        return progress
    if progress is not None:
        return lambda title: Progress(title, progress)
    on_terminal, due = sys.stderr is not None and sys.stderr.isatty(), time.monotonic() + PATIENCE
    return lambda title: Progress(title, on_terminal, due=due)


class Progress:
    """Counts steps of work; draws them on standard error if `shown`, together with those beneath it.

    due: when, by time.monotonic, they are drawn first.
    """

    def __init__(self, title: str, shown: bool, above: Progress | None = None, due: float = 0.0) -> None:
        self._title, self._shown, self._above, self._due = title, shown, above, due
        self._total: float | None = None
        self._done = 0.0
        self._bars: Any = None  # all that are drawn together
        self._task: Any = None

    def __enter__(self) -> Self:
        self._draw()
        return self

    def beneath(self, title: str) -> Progress:
        """A bar below this one while a part of its work is done."""
        return Progress(title, self._shown, self, self._due)

    def total(self, steps: float) -> None:
        """Say how many steps there will be."""
        self._total = steps
        self._draw()

    def name(self, title: str) -> None:
        """Say what is being done now."""
        self._title = title
        self._draw()

    def advance(self, steps: float = 1) -> None:
        """Say that steps were done; any thread may."""
        self._draw(steps)

    def _draw(self, steps: float = 0) -> None:
        if not self._shown:
            return
        with _lock:
            self._done += steps
            if time.monotonic() >= self._due:
                self._begin().update(self._task, description=self._title, total=self._total, completed=self._done)

    def _begin(self) -> Any:
        """Its bars, with itself among them."""
        if self._bars is None:
            self._bars = _drawn() if self._above is None else self._above._begin()
            self._task = self._bars.add_task(self._title, total=self._total, completed=self._done)
        return self._bars

    def __exit__(self, *exception: Any) -> None:
        if self._bars and self._above is None:
            self._bars.stop()
        elif self._bars:
            self._bars.remove_task(self._task)


def _drawn() -> Any:
    """Bars that are shown from now on. What is printed meanwhile on the same terminal appears above them."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    bars = Bars(console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
    bars.start()
    return bars
