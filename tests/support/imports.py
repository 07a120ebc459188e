"""Who imports whom in a package, and where that goes round in a circle."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from importlib.util import resolve_name
from itertools import pairwise
from pathlib import Path


def import_graph(package: Path) -> dict[str, set[str]]:
    """The modules of a package's folder by name, each with those of them that it imports.

    Counts what is imported at the top, inside functions, for type checkers and by `import_module` of a literal; not
    the parents of a module, which Python imports by itself.
    """
    # Path.rglob doesn't follow links to folders.
    files = [Path(folder, name) for folder, _, names in os.walk(package, followlinks=True) for name in names]
    modules = {_module_name(package, file): file for file in files if file.suffix == ".py"}
    return {name: set(_imported(name, file, modules)) for name, file in modules.items()}


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Circles like `a -> b -> a`, the shortest first, no two through the same import; none only where there is none."""
    left = {module: set(targets) for module, targets in graph.items()}
    named = []
    while ways := [way for module in sorted(left) if (way := _way_back(left, module))]:
        shortest = min(ways, key=len)
        named.append(" -> ".join(shortest))
        for module, target in pairwise(shortest):
            left[module].remove(target)
    return named


def _module_name(package: Path, file: Path) -> str:
    return ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


def _imported(module: str, file: Path, modules: dict[str, Path]) -> Iterator[str]:
    package = module if file.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(module=source, names=aliases, level=level):
                source = resolve_name("." * level + (source or ""), package)
                members = [f"{source}.{alias.name}" for alias in aliases]
                names = [member if member in modules else source for member in members]
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                names = [name]
            case _:
                continue
        yield from (name for name in names if name in modules)


def _way_back(graph: dict[str, set[str]], start: str) -> list[str] | None:
    """A shortest way from a module to itself, None where there is none."""
    ways, seen = [[start]], set()
    for way in ways:  # grows: breadth first
        for target in sorted(graph[way[-1]] - seen):
            if target == start:
                return [*way, start]
            seen.add(target)
            ways.append([*way, target])
    return None
