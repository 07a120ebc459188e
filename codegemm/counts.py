"""Numbers of things, as calls are given them."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def count(name: str, value: Any, least: int = 1) -> int:
    """A number of things as a plain int; ValueError for what is no integer, and below the least."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: must be an integer of at least {least}")
    return int(value)
