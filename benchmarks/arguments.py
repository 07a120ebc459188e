"""What the benchmarks on the CPU take on their command lines."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from codegemm.engines.cpu import isa


def parse(
    package: str,
    description: str | None,
    quick: str,
    arguments: Sequence[str] | None,
    name: str = "",
    files: Mapping[str, str] = MappingProxyType({}),
) -> argparse.Namespace:
    """json, a path in a folder that is there or None, and quick, of which the help says what it measures.

    name: json may be a folder, too, and is then `NAME-<instruction set>.json` in it, which must not be there.
    files: options that name a file that is there, with their help.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {package}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    told = f"; in a folder to {name}-<instruction set>.json, where there is none" if name else ""
    parser.add_argument("--json", type=Path, metavar="PATH", help=f"write everything there{told}")
    parser.add_argument("--quick", action="store_true", help=f"{quick} and few rounds, to see that all of it runs")
    for option, said in files.items():
        parser.add_argument(f"--{option}", type=Path, metavar="FILE", help=said)
    chosen = parser.parse_args(arguments)
    for option in files:
        path = getattr(chosen, option)
        if path is not None and not path.is_file():
            parser.error(f"--{option} {path}: there is no such file")
    if chosen.json is not None and name and chosen.json.is_dir():
        chosen.json /= f"{name}-{isa.chosen().name}.json"
        if chosen.json.exists():
            parser.error(f"--json: {chosen.json} is there already; name the file itself to replace it")
    if chosen.json is not None and not chosen.json.parent.is_dir():
        parser.error(f"--json {chosen.json}: there is no folder {chosen.json.parent}")
    return chosen
