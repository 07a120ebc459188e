"""`codegemm tune`: measure the kernels on this machine, for `auto` to take the fastest."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from codegemm.cli.options import ListOf, check_lists, find_engine, parse_shape

if TYPE_CHECKING:
    from rich.table import Table

    from codegemm.tuning import Measured


@click.command()
@click.option("--shape", "shapes", multiple=True, help="MxK (may be repeated); those of Llama-3-8B by default.")
@click.option("--config", "configs", type=ListOf(), help="Configurations, like m1v4g128,m2v8g128,e8p.")
@click.option("--batch", "batches", type=ListOf(int), default="1,2,4,8,16,32,64", show_default=True, help="Rows of x.")
@click.option("--engine", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16", "float32"]), help="Of x; a GPU's default is float16."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of the CPU kernels; all processors by default.")
@click.option("--seconds", type=click.FloatRange(0), default=0.1, show_default=True, help="For one measurement.")
def tune(
    shapes: tuple[str, ...],
    configs: list[str] | None,
    batches: list[int],
    engine: str,
    dtype: str | None,
    threads: int | None,
    seconds: float,
) -> None:
    """Measure the kernels that `auto` may choose, and keep the fastest for this device in the cache.

    They count for weights of the same shape and configuration and for x of the same dtype, and for the batches that
    were measured and those nearest to them, up to a factor of two; elsewhere `auto` estimates. Random codes are as good
    as real ones for time.
    """
    from codegemm import tuning
    from codegemm.arrays import float_dtype
    from codegemm.comparison import measure, report, sources
    from codegemm.devices import Device
    from codegemm.quantize.progress import Progress

    check_lists(batches, config=configs)
    engine = find_engine(engine)
    chosen = float_dtype(dtype or ("float32" if engine == "cpu" else "float16"))
    cases = [sources.shape_case(shape, configs) for shape in map(parse_shape, shapes)]
    cases = cases or [sources.shape_case(shape, configs) for shape in sources.LLAMA_3_8B]
    device = Device.parse(engine)
    with measure.threads(threads), Progress("tuning", sys.stderr.isatty()) as progress:
        measurements, place = tuning.tune(cases, batches, device, chosen, seconds, progress)
    console = report.open_console()
    console.print(_table(measurements))
    for case in cases:
        for config, reason in case.skipped.items():
            console.print(f"left out: {case.title}: {config}: {reason}", highlight=False, markup=False)
    click.echo(f"stored in {place}")


def _table(measurements: list[Measured]) -> Table:
    """A row for every product: what is taken now, how much slower the next and what was taken before are."""
    from rich.table import Table

    from codegemm.comparison.report import format_time

    table = Table()
    for heading in ("shape", "weights", "batch", "kernel", "time", "before", "next"):
        table.add_column(heading, justify="right" if heading in ("batch", "time") else "left")
    for measured in measurements:
        choice = measured.choice
        fastest, *rest = measured.seconds
        table.add_row(
            f"{choice.shape[0]} x {choice.shape[1]}",
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
