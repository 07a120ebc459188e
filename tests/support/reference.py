"""The public API: which docstrings it lacks, and its reference in HTML, which `make docs` writes by
`python -m support.reference FOLDER`.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import GenericAlias
from typing import Any
from unittest import mock

from support import ROOT

# Each says in `__all__` what of it is public.
MODULES = (
    "codegemm", "codegemm.calibration", "codegemm.checkpoints", "codegemm.comparison.result",
    "codegemm.measuring.machine", "codegemm.testing",
    *(name for name, needed in (("codegemm.torch", "torch"), ("codegemm.torch.lora", "peft")) if find_spec(needed)),
)  # fmt: skip


def undocumented(modules: Iterable[Any]) -> list[str]:
    """The full names of what is public in these modules and has no docstring."""
    return [name for module in modules for name in _undocumented(module)]


def _undocumented(module: Any) -> Iterator[str]:
    for name in module.__all__:
        value, full_name = getattr(module, name), f"{module.__name__}.{name}"
        if inspect.isclass(value):
            if not _is_described(value):
                yield full_name
            yield from (f"{full_name}.{member}" for member in dir(value) if _lacks_docstring(value, member))
        elif (inspect.isroutine(value) or inspect.ismodule(value)) and not value.__doc__:
            yield full_name


def _is_described(cls: type) -> bool:
    """By itself: not by what it inherits, nor by the signature that a dataclass gets in place of a docstring."""
    said = vars(cls).get("__doc__")
    return bool(said) and not said.startswith(f"{cls.__name__}(")


def _lacks_docstring(cls: type, member: str) -> bool:
    """Of methods and properties, where no class above has one either; the class's own describes its fields. Not of what
    comes from another package, into whose classes others may put more."""
    owner = next((base for base in cls.__mro__ if member in vars(base)), cls)
    if owner.__module__.partition(".")[0] != cls.__module__.partition(".")[0]:
        return False
    value = inspect.getattr_static(cls, member)
    is_called = inspect.isroutine(value) or isinstance(value, (property, cached_property))
    return is_called and not member.startswith("_") and not inspect.getdoc(getattr(cls, member))


_NAMES = r"(?:\w+, )*\w+:(?=\s)"
_TOKENS = re.compile(
    rf"(?P<code>`[^`]*`)|(?P<item>^{_NAMES})|(?P<name>(?<=[.;] )(?=[a-z]){_NAMES})|(?P<special>[*<])", re.MULTILINE
)


def as_markdown(docstring: str) -> str:
    """A docstring, which is plain text, in Markdown: where a line says `name: text` it is an item of a list, names
    before a colon are bold, and what Markdown would read as its own stands for itself."""
    made = {"code": "{}", "item": "- **{}**", "name": "**{}**", "special": "\\{}"}
    return _TOKENS.sub(lambda token: made[token.lastgroup or ""].format(token[0]), docstring)


# NumPy's aliases would be spelt out as all that they stand for.
_ALIASES = {
    name: type(name, (), {"__module__": "npt", "__class_getitem__": classmethod(GenericAlias)})
    for name in ("ArrayLike", "DTypeLike", "NDArray")
}


def write(folder: Path) -> None:
    """The reference as HTML, a page a module."""
    import pdoc

    for module in map(importlib.import_module, MODULES):
        vars(module).update({name: getattr(module, name) for name in module.__all__})  # pdoc looks nowhere else
    pdoc.render.configure(docformat="markdown", show_source=False, template_directory=ROOT / "docs" / "pdoc")
    pdoc.render.env.filters["to_markdown"] = as_markdown
    with mock.patch.multiple("numpy.typing", **_ALIASES):
        pdoc.pdoc(MODULES[0], rf"!{MODULES[0]}\..*", *MODULES[1:], output_directory=folder)


def main(folder: str) -> None:
    lacking = undocumented(map(importlib.import_module, MODULES))
    if lacking:
        sys.exit(f"no docstring: {', '.join(lacking)}")
    write(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
