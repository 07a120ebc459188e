"""`codegemm convert`: another project's Hugging Face folder into the package's weights."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Write a model of AQLM's in this package's form.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace TARGET where it exists, once all is written.")
def convert(source: Path, target: Path, force: bool) -> None:
    """Write the AQLM model in the folder SOURCE as the folder TARGET, in the package's weights.

    SOURCE holds config.json and safetensors files, as AQLM's models on the Hugging Face Hub do. Every other file is
    copied, hidden ones and weights in other forms aside.
    """
    from codegemm import model_card
    from codegemm.checkpoints import convert_folder
    from codegemm.reporting import counted

    done = convert_folder(source, target, force=force)
    if done.left_out:
        click.echo(f"not copied: {', '.join(done.left_out)}")
    weights, others = counted(len(done.converted), "weight"), counted(len(done.copied), "other tensor")
    configs = ", ".join(sorted(set(done.converted.values())))
    size = f"{done.source_bytes / 1e6:.1f} MB -> {done.target_bytes / 1e6:.1f} MB"
    click.echo(f"{target}: {weights} in {configs}, {others} copied; {size}")
    click.echo(model_card.hint(target))
