"""A progress bar that costs nothing when it isn't wanted."""

from __future__ import annotations

import sys
from typing import Any, Self


class Progress:
    """Counts steps of work; draws them on standard error if `shown`, together with those beneath it."""

    def __init__(self, title: str, shown: bool, above: Progress | None = None) -> None:
        self._title, self._shown, self._above = title, shown, above
        self._bars: Any = None  # all that are drawn together
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._shown:
            self._bars = _drawn() if self._above is None else self._above._bars
            self._task = self._bars.add_task(self._title, total=None)
        return self

    def beneath(self, title: str) -> Progress:
        """A bar below this one while a part of its work is done."""
        return Progress(title, self._shown, self)

    def total(self, steps: float) -> None:
        """Say how many steps there will be."""
        if self._bars:
            self._bars.update(self._task, total=steps)

    def name(self, title: str) -> None:
        """Say what is being done now."""
        if self._bars:
            self._bars.update(self._task, description=title)

    def advance(self, steps: float = 1) -> None:
        """Say that steps were done."""
        if self._bars:
            self._bars.advance(self._task, steps)

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
