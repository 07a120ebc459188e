"""What the benchmarks on the CPU take on their command lines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from codegemm.engines.cpu import isa


def new_parser(package: str, description: str | None, quick: str) -> argparse.ArgumentParser:
    """With `--json PATH` and `--quick`, of which the help says what it measures."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {package}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    told = "write everything there; in a folder, to a file named by the instruction set, where none is yet"
    parser.add_argument("--json", type=Path, metavar="PATH", help=told)
    parser.add_argument("--quick", action="store_true", help=f"{quick} and few rounds, to see that all of it runs")
    return parser


def parse(parser: argparse.ArgumentParser, name: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """json: a file in a folder that is there, or None; `NAME-<instruction set>.json` where a folder was named, in which
    there must be none."""
    chosen = parser.parse_args(arguments)
    if chosen.json is None:
        return chosen
    if chosen.json.is_dir():
        chosen.json /= f"{name}-{isa.chosen().name}.json"
        if chosen.json.exists():
            parser.error(f"--json: {chosen.json} is there already; name the file itself to replace it")
    if not chosen.json.parent.is_dir():
        parser.error(f"--json {chosen.json}: there is no folder {chosen.json.parent}")
    return chosen
