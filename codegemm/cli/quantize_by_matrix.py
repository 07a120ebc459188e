"""What `codegemm quantize` does without texts: each matrix for itself, by sums of its inputs where there are any."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codegemm.cli import options

if TYPE_CHECKING:
    from codegemm.quantize.file import QuantizedFile
    from codegemm.quantize.plan import Copied, Quantized


def run(
    source: Path, target: Path, config: str | None, sums: tuple[Path, ...], *, rotate: bool, dry_run: bool, **how: Any
) -> None:
    """Quantise the matrices, and say what became of each. sums: a file with those of the layers' inputs, or none."""
    if config is None:
        raise click.UsageError("--config: is missing")
    if len(sums) > 1:
        raise click.UsageError(f"--calibration {sums[1]}: of sums there can be one file")
    from codegemm.quantize import configured
    from codegemm.quantize.file import Interrupted, quantize_file

    wanted, say = configured(config, rotate), options.beside_bars()

    def tell(one: Quantized | Copied) -> None:
        line = _line(one, bool(sums))
        if line is not None:
            say(line)

    try:
        done = quantize_file(
            source, target, wanted, calibration=sums[0] if sums else None, progress=sys.stderr.isatty(),
            on_tensor=None if dry_run else tell, dry_run=dry_run, **how,
        )  # fmt: skip
    except Interrupted as stop:
        kept = f"{stop.kept} of {stop.total} matrices are kept in {stop.folder}"
        click.echo(f"stopped: {kept}; the same command goes on from there", err=True)
        sys.exit(130)
    if dry_run:
        _print_plan(done, bool(sums))
        for one in done.copied:
            tell(one)
    _print_group_sizes(done, str(wanted))
    _print_summary(target, done, dry_run)


def _line(one: Quantized | Copied, calibrated: bool) -> str | None:
    """What became of a tensor; nothing of one that nobody asked for."""
    from codegemm.quantize.plan import Quantized

    if isinstance(one, Quantized):
        note = ", without calibration: the file has none for it" if calibrated and not one.calibrated else ""
        return f"{one.tensor}: {list(one.shape)} at {one.bits_per_weight:.3f} bits/weight{note}"
    return None if one.reason is None else f"copied as it is: {one.tensor}: {one.reason}"


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
