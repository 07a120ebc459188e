"""What the commands' options have in common."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from pathlib import Path

import click


class ListOf(click.ParamType):
    """Comma-separated values."""

    name = "list"

    def __init__(self, kind: type = str) -> None:
        self._kind = kind

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[object]:
        if isinstance(value, list):
            return value
        try:
            return [self._kind(part.strip()) for part in str(value).split(",") if part.strip()]
        except ValueError:
            self.fail(f"{value!r}: must be {self._kind.__name__}s, separated by commas", param, ctx)


def parse_shape(text: str) -> tuple[int, int]:
    """(out_features, in_features) of `4096x1024`."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise click.BadParameter(f"{text!r}: must be <out_features>x<in_features>, like 4096x4096")
    return int(match[1]), int(match[2])


def check_lists(batches: list[int], **named: list[str] | None) -> None:
    """BadParameter for a list that names nothing, or batches that aren't positive."""
    for option, values in named.items():
        if values is not None and not values:
            raise click.BadParameter(f"--{option}: names nothing")
    if not batches or min(batches) < 1:
        raise click.BadParameter(f"--batch {batches}: must be positive numbers")


def find_engine(engine: str) -> str:
    """`cpu` or `cuda`; `auto` is the latter where there is a GPU. UsageError where `cuda` was asked for in vain."""
    from codegemm import devices

    reason = devices.unavailable()
    if engine == "cuda" and reason:
        raise click.UsageError(f"--engine cuda: {reason}")
    return ("cpu" if reason else "cuda") if engine == "auto" else engine


def check_writable(*paths: Path | None) -> None:
    """BadParameter for a file that can't be made where it is to be."""
    for path in paths:
        if path is None:
            continue
        if not path.parent.is_dir():
            raise click.BadParameter(f"{path}: there is no folder {path.parent}")
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise click.BadParameter(f"{path}: can't be written to: {error.strerror}") from None


def missing_plotting() -> str | None:
    """Why nothing can be drawn, or None."""
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed: pip install 'codegemm[plot]'"
    return None


def check_plotting(option: str) -> None:
    """UsageError where there is nothing to draw with."""
    reason = missing_plotting()
    if reason:
        raise click.UsageError(f"{option}: {reason}")
