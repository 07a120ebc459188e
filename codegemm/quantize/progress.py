"""A progress bar that costs nothing when it isn't wanted."""

from __future__ import annotations

from typing import Any, Self


class Progress:
    """Counts steps of work; draws them on standard error if `shown`."""

    def __init__(self, title: str, shown: bool) -> None:
        self._title, self._shown, self._bar, self._task = title, shown, None, None

    def __enter__(self) -> Self:
        if self._shown:
            from rich.console import Console
            from rich.progress import Progress as Bar

            bar: Any = Bar(console=Console(stderr=True), transient=True)
            bar.start()
            self._bar, self._task = bar, bar.add_task(self._title, total=None)
        return self

    def total(self, steps: float) -> None:
        """Say how many steps there will be."""
        if self._bar:
            self._bar.update(self._task, total=steps)

    def name(self, title: str) -> None:
        """Say what is being done now."""
        if self._bar:
            self._bar.update(self._task, description=title)

    def advance(self, steps: float = 1) -> None:
        """Say that steps were done."""
        if self._bar:
            self._bar.advance(self._task, steps)

    def __exit__(self, *exception: Any) -> None:
        if self._bar:
            self._bar.stop()
