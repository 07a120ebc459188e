"""What the benchmarks on the CPU take on their command lines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def parse(package: str, description: str | None, quick: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """json, a path in a folder that is there or None, and quick, of which the help says what it measures."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {package}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--quick", action="store_true", help=f"{quick} and few rounds, to see that all of it runs")
    chosen = parser.parse_args(arguments)
    if chosen.json is not None and not chosen.json.parent.is_dir():
        parser.error(f"--json {chosen.json}: there is no folder {chosen.json.parent}")
    return chosen
