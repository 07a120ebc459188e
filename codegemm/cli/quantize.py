"""`codegemm quantize`: the matrices of a safetensors file, or of a model's folder, into the package's format."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codegemm.cli import options, quantize_by_text

if TYPE_CHECKING:
    from codegemm.quantize.file import QuantizedFile
    from codegemm.quantize.plan import Copied, Quantized


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--config", help="Like m2v8g128, e8p or qtip. With --bits, those to choose from: m1v4g-1,m2v8g128.")
@click.option(
    "--include",
    metavar="REGEX",
    help="Of the whole tensor names. Default: all that end in .weight but embeddings, output heads and routers of "
    "experts, which are quantised only where this names them.",
)
@click.option("--exclude", metavar="REGEX", help="Of the whole names of those to be left as they are.")
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
    if any(each.suffix != ".safetensors" for each in calibration):
        if include or exclude:
            raise click.UsageError(
                "--include, --exclude: with texts as --calibration, --layer and --dense say what is meant"
            )
        quantize_by_text.run(
            source, target, config, calibration, rotate=rotate, time_limit=time_limit, seed=seed, force=force,
            dry_run=dry_run, **by_text,
        )  # fmt: skip
        return
    quantize_by_text.check_unused(by_text)
    if config is None:
        raise click.UsageError("--config: is missing")
    if len(calibration) > 1:
        raise click.UsageError(f"--calibration {calibration[1]}: of sums there can be one file")
    calibration_file = calibration[0] if calibration else None
    from codegemm.quantize import configured
    from codegemm.quantize.file import Interrupted, quantize_file
    from codegemm.quantize.plan import Quantized

    usual = str(configured(config, rotate))
    progress = sys.stderr.isatty()
    say = print if progress and sys.stdout.isatty() else click.echo  # which is not heard by bars

    def tell(one: Quantized | Copied) -> None:
        if isinstance(one, Quantized):
            known = one.calibrated or calibration_file is None
            note = "" if known else ", without calibration: the file has none for it"
            say(f"{one.tensor}: {list(one.shape)} at {one.bits_per_weight:.3f} bits/weight{note}")
        elif one.reason is not None:
            say(f"copied as it is: {one.tensor}: {one.reason}")

    try:
        done = quantize_file(
            source, target, config, include=include, exclude=exclude, calibration=calibration_file, rotate=rotate,
            time_limit=time_limit, seed=seed, progress=progress, on_tensor=None if dry_run else tell,
            force=force, dry_run=dry_run,
        )  # fmt: skip
    except Interrupted as stop:
        kept = f"{stop.kept} of {stop.total} matrices are kept in {stop.folder}"
        click.echo(f"stopped: {kept}; the same command goes on from there", err=True)
        sys.exit(130)
    if dry_run:
        _print_plan(done, calibration_file is not None)
        for one in done.copied:
            tell(one)
    _print_group_sizes(done, usual)
    _print_summary(target, done, dry_run)


def _print_plan(planned: QuantizedFile, calibrated: bool) -> None:
    """A line for each matrix that would be quantised."""
    from codegemm.reporting import by, new_table, open_console

    table = new_table("", "matrix", ">shape", ">bits", ">MB", ">then", *["calibrated"] * calibrated)
    for one in planned.quantized:
        sizes = (f"{each / 1e6:.2f}" for each in (one.source_bytes, one.nbytes))
        known = ["yes" if one.calibrated else "no"] * calibrated
        table.add_row(one.tensor, by(one.shape), f"{one.bits_per_weight:.3f}", *sizes, *known)
    open_console().print(table)


def _print_group_sizes(done: QuantizedFile, config: str) -> None:
    """Which matrices have another than that of the configuration."""
    others = Counter((one.shape[1], one.config) for one in done.quantized if one.config != config)
    for (columns, own), count in others.items():
        said = f"{count} of {len(done.quantized)} matrices are {own}"
        click.echo(f"{said}: the group size of {config} does not divide their {columns} columns")


def _print_summary(target: Path, done: QuantizedFile, dry_run: bool) -> None:
    from codegemm import model_card
    from codegemm.shards import CONFIG

    named = sum(one.reason is not None for one in done.copied)
    if done.left_out:
        click.echo(f"not copied: {', '.join(done.left_out)}")
    parts = [f"{len(done.quantized)} {'to be ' * dry_run}quantised"]
    parts += [f"{done.resumed} of them before"] * bool(done.resumed)
    parts += [f"{named} left as they are"] * bool(named)
    parts += [f"{len(done.copied) - named} others copied"]
    size = f"{done.source_bytes / 1e6:.1f} MB -> {'about ' * dry_run}{done.target_bytes / 1e6:.1f} MB"
    click.echo(f"{target}: {', '.join(parts)}; {size}")
    if not dry_run and (target / CONFIG).is_file():
        click.echo(model_card.hint(target))
