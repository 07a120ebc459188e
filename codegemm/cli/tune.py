"""`codegemm tune`: measure the kernels on this machine, for `auto` to take the fastest."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from codegemm.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from codegemm.tuning import Measured


@click.command(short_help="Measure what `auto` may choose, and keep the fastest.")
@options.SHAPES
@options.CONFIGS
@options.batches("1,2,4,8,16,32,64")
@options.ENGINE
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16", "float32"]), help="Type of x; a GPU's default is float16."
)
@options.THREADS
@options.seconds(0.1)
def tune(
    shapes: tuple[tuple[int, int], ...],
    configs: list[str] | None,
    batches: list[int],
    engine: str,
    dtype: str | None,
    threads: int | None,
    seconds: float,
) -> None:
    """Measure the kernels that `auto` may choose, and keep the fastest for this device in the cache.

    Without --shape it takes the shapes of Llama-3-8B. Choices count for weights of the same shape and configuration and
    for x of the same dtype, and for the batches that were measured and those nearest to them, up to a factor of two;
    elsewhere `auto` estimates. Random codes are as good as real ones for time.
    """
    from codegemm import tuning
    from codegemm.arrays import float_dtype
    from codegemm.devices import Device
    from codegemm.measuring import conditions, sources
    from codegemm.quantize.progress import Progress
    from codegemm.reporting import open_console

    chosen = float_dtype(dtype) if dtype else conditions.dtype_of(engine)
    cases = [sources.shape_case(shape, configs) for shape in shapes or sources.LLAMA_3_8B]
    with conditions.threads(threads), Progress("tuning", sys.stderr.isatty()) as progress:
        measurements, place = tuning.tune(cases, batches, Device.parse(engine), chosen, seconds, progress)
    console = open_console()
    console.print(_table(measurements))
    for case in cases:
        for config, reason in case.skipped.items():
            console.print(f"left out: {case.title}: {config}: {reason}")
    click.echo(f"stored in {place}")


def _table(measurements: list[Measured]) -> Table:
    """A row for every product: what is taken now, how much slower the next and what was taken before are."""
    from codegemm.reporting import by, format_time, new_table

    table = new_table("", "shape", "weights", ">batch", "kernel", ">time", "before", "next")
    for measured in measurements:
        choice = measured.choice
        fastest, *rest = measured.seconds
        table.add_row(
            by(choice.shape),
            choice.weights,
            str(choice.batches[0]),
            fastest,
            format_time(measured.seconds[fastest]),
            "the same" if measured.before == fastest else _slower(measured, measured.before),
            _slower(measured, rest[0]) if rest else "",
        )
    return table


def _slower(measured: Measured, name: str) -> str:
    """Another kernel and its time in multiples of the fastest's; a kernel that wasn't measured alone."""
    if name not in measured.seconds:
        return name
    return f"{name} x {measured.seconds[name] / measured.seconds[measured.choice.kernel]:.2f}"
