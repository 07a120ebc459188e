"""`codegemm info`: what a file holds."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(short_help="List the quantised weights of a file or a folder.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON: names, formats, shapes, bits per weight, bytes.")
def info(file: Path, as_json: bool) -> None:
    """List the quantised weights of FILE, or of a model's folder or index."""
    from codegemm.reporting import by, counted
    from codegemm.shards import open_model
    from codegemm.storage import load_all

    weights = load_all(file)
    total, whole = sum(weight.nbytes for weight in weights.values()), open_model(file).nbytes
    if as_json:
        listed = [
            {
                "name": name,
                "format": weight.spec.name,
                "shape": weight.shape,
                "bits_per_weight": weight.bits_per_weight,
                "bytes": weight.nbytes,
            }
            for name, weight in weights.items()
        ]
        click.echo(json.dumps({"weights": listed, "bytes": total, "file_bytes": whole}, indent=1))
        return
    lines = [("format", "shape", "bits/weight", "MB", "weight")]
    for name, weight in weights.items():
        numbers = f"{weight.bits_per_weight:.3f}", f"{weight.nbytes / 1e6:.2f}"
        lines.append((weight.spec.name, by(weight.shape), *numbers, name))
    # Names come last, in lines that nothing breaks but the terminal's edge: however long, they can be copied whole.
    first, *widths, _ = (max(map(len, column)) for column in zip(*lines))
    for kind, *cells, name in lines:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths))
        click.echo("  ".join([kind.ljust(first), *aligned, name]))
    click.echo(f"{counted(len(weights), 'weight')}, {total / 1e6:.1f} MB of {whole / 1e6:.1f} MB")
