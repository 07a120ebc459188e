"""`codegemm reproduce`: the paper's experiments on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from codegemm.cli import options
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.reproduction import ALL, NAMES

_CHOICES = (*NAMES, ALL)


@click.command(short_help="Run the experiments of the CodeGEMM paper.")
@click.argument("names", nargs=-1, type=click.Choice(_CHOICES), metavar=f"[{'|'.join(_CHOICES)}]...")
@options.ENGINE
@click.option("--predict", "gpu", type=click.Choice(list(KNOWN)), help="Measure nothing: predict times on that GPU.")
@options.THREADS
@options.seconds(0.25)
@options.ROUNDS
@options.JSON
@click.option("--plot", "plot_path", type=options.Picture(".png", ".svg"), help="Draw it there (PNG or SVG).")
def reproduce(
    names: tuple[str, ...],
    engine: str,
    gpu: str | None,
    threads: int | None,
    seconds: float,
    rounds: int,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Run the experiments of the CodeGEMM paper on this machine, and print its tables and ours side by side.

    table2: a decoder block of Llama-3. table3: work, power and memory. table6: which share builds tables. table7: other
    tiles. table8: configurations. table9: a block by rows of inputs. table10: matrix by matrix. figure4: bits, time and
    error. Without names it runs all, which takes about a quarter of an hour on two cores.

    Absolute times are another machine's; what can be compared are the ratios, which are to the dense product of the
    same machine. Weights are random codes of the paper's shapes, multiplied by the kernel that `auto` takes, and by
    those that work as the paper's opponents do.

    The exit status is 1 where a kernel is wrong or fails.
    """
    from codegemm import reporting
    from codegemm.comparison.report import complaints
    from codegemm.quantize.progress import Progress
    from codegemm.reproduction import plot, report, runner

    options.check_outputs([json_path, plot_path], None)
    with Progress("reproducing", sys.stderr.isatty()) as progress:
        found = runner.run(names or (ALL,), engine, gpu or "", threads, seconds, rounds, progress)
    # Files first: what reads the tables may be gone.
    if json_path is not None:
        reporting.write_json(found.as_json(), json_path)
    if plot_path is not None:
        plot.write_plot(found, plot_path)
    report.print_tables(found)
    if found.result is not None:
        for text in complaints(found.result):
            click.echo(text, err=True)
    if found.broken:
        sys.exit(1)
