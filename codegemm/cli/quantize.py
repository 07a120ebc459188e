"""`codegemm quantize`: the matrices of a safetensors file, or of a model's folder, into the package's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from codegemm.cli import options, quantize_by_matrix, quantize_by_text


@click.command(short_help="Quantise the matrices of a file or a model.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--config", help="Configuration, like m2v8g128, e8p or qtip. With --bits, those to choose from: m1v4g-1,m2v8g128."
)
@click.option(
    "--include",
    metavar="REGEX",
    help="Matches the whole names of tensors to quantise. Default: all that end in .weight but embeddings, output "
    "heads and routers of experts, which are quantised only where this names them.",
)
@click.option("--exclude", metavar="REGEX", help="Matches the whole names of those to be left as they are.")
@click.option(
    "--calibration",
    cls=options.Several,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE...",
    help="Texts in UTF-8: a model is quantised for them block by block. Or one .safetensors file with sums of the "
    "layers' inputs by the weights' names, as codegemm.calibration.save writes it.",
)
@quantize_by_text.OPTIONS
@click.option("--rotate", is_flag=True, help="Rotate the inputs: for weights with heavy tails.")
@click.option(
    "--time-limit",
    type=click.FloatRange(0),
    help="Seconds for each matrix; then it is left as good as it is. Not for e8p and qtip, which leave nothing out.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--force", is_flag=True, help="Replace TARGET where it exists, once all is written.")
@click.option("--dry-run", is_flag=True, help="Print what would become of each matrix; write nothing.")
def quantize(
    source: Path,
    target: Path,
    config: str | None,
    include: str | None,
    exclude: str | None,
    calibration: tuple[Path, ...],
    rotate: bool,
    time_limit: float | None,
    seed: int,
    force: bool,
    dry_run: bool,
    **by_text: Any,
) -> None:
    """Quantise the matrices of SOURCE, copy everything else, write TARGET.

    SOURCE is a safetensors file; or a folder with model.safetensors or with shards and their index, or the index. Then
    TARGET is a folder of the same form, to which the other files are copied, hidden ones and weights in other forms
    aside. A matrix `name.weight` becomes the weight `name`. One that would take more bits than it has stays as it is;
    one whose rows the group size does not divide gets the largest smaller one that does.

    With texts as --calibration, SOURCE is a folder of Hugging Face's with a tokenizer, and all linear layers of the
    model are quantised, in turn, for the inputs that the quantised layers before them give. With --bits, layers that
    the model's predictions depend on more get more bits. SOURCE and TARGET stand before --calibration, or behind `--`.

    What is finished is kept beside TARGET until that is whole: after Ctrl-C the same command goes on from there.
    """
    common: dict[str, Any] = {
        "rotate": rotate,
        "time_limit": time_limit,
        "seed": seed,
        "force": force,
        "dry_run": dry_run,
    }
    if any(each.suffix != ".safetensors" for each in calibration):
        if include or exclude:
            raise click.UsageError(
                "--include, --exclude: with texts as --calibration, --layer and --dense say what is meant"
            )
        quantize_by_text.run(source, target, config, calibration, **common, **by_text)
    else:
        quantize_by_text.check_unused(by_text)
        quantize_by_matrix.run(source, target, config, calibration, include=include, exclude=exclude, **common)
