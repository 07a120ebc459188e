"""`codegemm info`: what a file holds."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def info(file: Path) -> None:
    """List the quantised weights of FILE."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from codegemm.formats.e8p import E8PWeight
    from codegemm.formats.names import name_of
    from codegemm.storage import load_all

    weights = load_all(file)
    table = Table()
    for heading in ("weight", "format", "shape", "bits/weight", "MB"):
        table.add_column(heading, justify="left" if heading in ("weight", "format") else "right")
    for name, weight in weights.items():
        form = f"e8p, {weight.bits} bit" if isinstance(weight, E8PWeight) else name_of(weight.spec)
        size = f"{weight.shape[0]} x {weight.shape[1]}"
        table.add_row(escape(name), form, size, f"{weight.bits_per_weight:.3f}", f"{weight.nbytes / 1e6:.2f}")
    Console().print(table)
    total = sum(weight.nbytes for weight in weights.values())
    click.echo(
        f"{len(weights)} weight{'s' * (len(weights) != 1)}, {total / 1e6:.1f} MB of {file.stat().st_size / 1e6:.1f} MB"
    )
