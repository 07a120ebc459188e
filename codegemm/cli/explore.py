"""`codegemm explore`: size, error and time of the configurations that fit a budget of bits, for one's own weights."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from codegemm.cli import options


@click.command(short_help="Size, error and time of a matrix in many configurations.")
@click.argument("weights", type=click.Path(path_type=Path))
@click.option(
    "--bits",
    type=options.ListOf(click.FloatRange(0.5, 8)),
    default="1,2,3,4",
    show_default=True,
    help="Budgets of bits a weight.",
)
@options.TENSORS
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="A file of codegemm.calibration.save: errors are of outputs then.",
)
@click.option("--rotate", is_flag=True, help="Try every configuration with a rotation, too.")
@click.option("--rows", type=click.IntRange(1), default=1, show_default=True, help="Rows of x.")
@click.option(
    "--output",
    "plot_path",
    type=options.Picture(),
    default=lambda: None if options.missing_plotting() else "explore.png",
    help="Draw it there (PNG); explore.png if matplotlib is installed.",
)
@options.JSON
@click.option("--seed", default=0, show_default=True)
@options.ENGINE
@options.THREADS
@options.seconds(0.25)
def explore(
    weights: Path,
    bits: list[float],
    tensors: tuple[str, ...],
    calibration: Path | None,
    rotate: bool,
    rows: int,
    plot_path: Path | None,
    json_path: Path | None,
    seed: int,
    engine: str,
    threads: int | None,
    seconds: float,
) -> None:
    """Quantise a matrix of WEIGHTS in the ways that fit a budget of bits; print size, error and time.

    WEIGHTS is a safetensors file or a model's folder. Without --tensor it takes the first matrix of the shape that it
    has most of. `MSE` is |W - W'|^2 / |W|^2; with --calibration `output MSE` is the same of the outputs. `x dense` is
    the speed in multiples of the dense product's. What was measured is kept in the cache: Ctrl-C ends the work with
    what there is, and another run goes on from there.
    """
    from codegemm.exploration import plot, report, runner
    from codegemm.exploration.matrices import load_matrices
    from codegemm.exploration.measure import Settings
    from codegemm.measuring import conditions
    from codegemm.quantize.progress import Progress

    options.check_outputs([plot_path, json_path], weights, calibration)
    matrices = load_matrices(weights, tensors, calibration)
    with conditions.threads(threads), Progress("exploring", sys.stderr.isatty()) as progress:
        result = runner.run(matrices, bits, rotate, Settings(engine, rows, seed, seconds), progress)
    if not any(explored.measured for explored in result.matrices):
        if result.unfinished:
            raise click.Abort
        reasons = (f"{name}: {reason}" for one in result.matrices for name, reason in one.skipped.items())
        raise click.ClickException(f"{weights}: nothing could be quantised: {next(reasons)}")
    report.print_tables(result)
    if json_path is not None:
        report.write_result(result, json_path)
    if plot_path is not None:
        plot.write_plot(result, plot_path)
        click.echo(f"drawn: {plot_path}")
    else:
        click.echo(f"not drawn: {options.missing_plotting()}")
    if result.unfinished:
        sys.exit(130)
