"""`codegemm info`: what a file holds."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def info(file: Path) -> None:
    """List the quantised weights of FILE, or of a model's folder or index."""
    from codegemm.reporting import by, counted, new_table, open_console
    from codegemm.shards import open_model
    from codegemm.storage import load_all

    weights = load_all(file)
    table = new_table("", "weight", "format", ">shape", ">bits/weight", ">MB")
    for name, weight in weights.items():
        size = f"{weight.nbytes / 1e6:.2f}"
        table.add_row(name, weight.spec.name, by(weight.shape), f"{weight.bits_per_weight:.3f}", size)
    open_console().print(table)
    total = sum(weight.nbytes for weight in weights.values())
    click.echo(f"{counted(len(weights), 'weight')}, {total / 1e6:.1f} MB of {open_model(file).nbytes / 1e6:.1f} MB")
