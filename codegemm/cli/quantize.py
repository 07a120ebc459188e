"""`codegemm quantize`: the matrices of a safetensors file into the package's format."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from codegemm.cli.options import NewFile


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=NewFile())
@click.option("--config", required=True, help="Like m2v8g128, or e8p.")
@click.option(
    "--include",
    default=r".*\.weight",
    show_default=True,
    help="Regular expression of the whole tensor names.",
)
@click.option(
    "--calibration",
    "calibration_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Sums of the layers' inputs by the weights' names, as codegemm.calibration.save writes them.",
)
@click.option("--rotate", is_flag=True, help="Rotate the inputs: for weights with heavy tails.")
@click.option(
    "--time-limit", type=click.FloatRange(0), help="Seconds for each matrix; then it is left as good as it is."
)
@click.option("--seed", default=0, show_default=True)
def quantize(
    source: Path,
    target: Path,
    config: str,
    include: str,
    calibration_file: Path | None,
    rotate: bool,
    time_limit: float | None,
    seed: int,
) -> None:
    """Quantise the matrices of SOURCE whose names match, copy everything else, write TARGET.

    A matrix `name.weight` becomes the weight `name`. Embeddings are matrices too: name what you want with --include.
    """
    from codegemm.quantize.file import Copied, Quantized, quantize_file

    def tell(one: Quantized | Copied) -> None:
        if isinstance(one, Quantized):
            known = one.calibrated or calibration_file is None
            note = "" if known else ", without calibration: the file has none for it"
            click.echo(f"{one.tensor}: {list(one.shape)} at {one.bits_per_weight:.3f} bits/weight{note}")
        elif one.reason is not None:
            click.echo(f"copied as it is: {one.tensor}: {one.reason}")

    done = quantize_file(
        source, target, config, include=include, calibration=calibration_file, rotate=rotate,
        time_limit=time_limit, seed=seed, progress=sys.stderr.isatty(), on_tensor=tell,
    )  # fmt: skip
    click.echo(
        f"{target}: {len(done.quantized)} quantised, {len(done.copied)} copied; "
        f"{done.source_bytes / 1e6:.1f} MB -> {done.target_bytes / 1e6:.1f} MB"
    )
