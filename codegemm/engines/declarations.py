"""What C++ and CUDA sources declare and Python needs too: read from them, so that it is written once.

As clang-format leaves a source, what it declares for others begins at a line's start. A name may come from a file of
the same folder that is included. ValueError, with the name, for what is not declared once, or in a form that is not
read.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

_COMMENT = re.compile(r"//.*")
_INCLUDE = re.compile(r'^#include "(.*)"', re.M)
_CONSTANTS = re.compile(r"^constexpr int ([^;]*);", re.M)
_CONSTANT = re.compile(r"(\w+) = ([^,]*)")
_BODY = re.compile(r"^(?:struct|enum class) (\w+)(?: : \w+)? \{(?:(.*)|\n((?s:.*?))^)\}; *$", re.M)
_INNER = re.compile(r"\{[^{}]*\}")
_NO_FIELD = re.compile(r"static constexpr |(?:template <.*> )?DEVICE ")
_FIELDS = re.compile(r"(?:const )?(\w+)(\*?) (\w+(?:\[[^\]]*\])?(?:, \w+)*)")
_NAME = re.compile(r"\b[A-Za-z_]\w*")
_EXPRESSION = re.compile(r"(?:[0-9()+*\s-]|<<)+")
_TYPES = {
    "int": ctypes.c_int32, "int32_t": ctypes.c_int32, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64,
    "float": ctypes.c_float, "double": ctypes.c_double,
}  # fmt: skip


@cache
def constant(source: Path, name: str) -> int:
    """The value of `constexpr int name = ..`, an expression of integers and such constants."""
    return _value(source, name, _declared(source, name))


@cache
def enumeration(source: Path, name: str) -> dict[str, int]:
    """The names of an `enum class`, numbered in their order."""
    names = [each.strip() for each in _declared(source, name).split(",")]
    if not all(each.isidentifier() for each in names):
        raise ValueError(f"{source.name}: {name} is not names alone")
    return {each: number for number, each in enumerate(names)}


@cache
def structure(source: Path, name: str) -> type[ctypes.Structure]:
    """Of numbers, pointers, other structures and arrays of them; functions and static members are passed over."""
    body, inner = _declared(source, name), 1
    while inner:
        body, inner = _INNER.subn(";", body)
    fields: list[tuple[str, Any]] = []
    for text in filter(None, (" ".join(statement.split()) for statement in body.split(";"))):
        if _NO_FIELD.match(text):
            continue
        if not (declared := _FIELDS.fullmatch(text)):
            raise ValueError(f"{source.name}: {name} has {text!r}, which is not read")
        kind: Any = ctypes.c_void_p if declared[2] else _TYPES.get(declared[1]) or structure(source, declared[1])
        for field, _, count in (each.rstrip("]").partition("[") for each in declared[3].split(", ")):
            fields.append((field, kind * _value(source, f"{name}::{field}", count) if count else kind))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def owned(names: Iterable[str], owners: tuple[Any, ...]) -> dict[str, Any]:
    """Fields of these names as the first owner (a spec, a configuration, a cut) has them that has such a one."""
    return {name: getattr(owner, name) for owner in reversed(owners) for name in names if hasattr(owner, name)}


@cache
def _file(path: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """What a file includes of its folder, and what it declares: names, and the text of each."""
    text = _COMMENT.sub("", path.read_text())
    included = [each for each in map(path.with_name, _INCLUDE.findall(text)) if each.exists()]
    constants = [constant for each in _CONSTANTS.findall(text) for constant in _CONSTANT.findall(each)]
    return included, constants + [(name, line or lines) for name, line, lines in _BODY.findall(text)]


def _declared(source: Path, name: str) -> str:
    paths = [source]
    for path in paths:
        paths += [each for each in _file(path)[0] if each not in paths]
    found = [text for path in paths for other, text in _file(path)[1] if other == name]
    if len(found) != 1:
        raise ValueError(f"{source.name}: {len(found)} declarations of {name} that are read")
    return found[0]


def _value(source: Path, name: str, text: str) -> int:
    """Of an integer expression; name: what has it."""
    numbers = _NAME.sub(lambda found: str(constant(source, found[0])), text)
    if not _EXPRESSION.fullmatch(numbers):
        raise ValueError(f"{source.name}: {name} is {text!r}, which is not read")
    return int(eval(f"({numbers})"))  # these operators are the same in both languages
