"""`codegemm compare`: the head-to-head comparison on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from codegemm.cli import options
from codegemm.kernel import Kernel
from codegemm.registry import PRECISIONS


@click.command(short_help="Time all kernels for a weight, and check their results.")
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--weights", type=click.Path(path_type=Path), help="A safetensors file, or a model's folder, to take matrices from."
)
@options.TENSORS
@options.SHAPES
@options.CONFIGS
@options.batches("1,4,16")
@click.option("--kernels", type=options.ListOf(), help="Kernels, like psumbook or cpu:psumbook; else all.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Only kernels of that precision beside dense ones.")
@click.option("--plugin", "plugins", type=options.Plugin(), multiple=True, help="A kernel of yours, like module:Class.")
@click.option("--paths", type=options.ListOf(), help="Instruction sets for the CPU kernels, like avx2,plain.")
@options.ENGINE
@options.THREADS
@options.seconds(0.25)
@options.ROUNDS
@options.JSON
@click.option("--plot", "plot_path", type=options.Picture(), help="Draw it there (PNG).")
@click.pass_context
def compare(
    ctx: click.Context,
    /,
    results: tuple[Path, ...],
    json_path: Path | None,
    plot_path: Path | None,
    plugins: tuple[Any, ...],
    **asked: Any,
) -> None:
    """Multiply by quantised weights with every kernel of this machine, and print the times and errors.

    Without --weights or --shape it takes trained weights of MiniLM and the shapes of Llama-3-8B; of a file, without
    --tensor, the first matrix of each shape that layers have.

    Times are medians of rounds, in each of which every product has its turn. `error` is ||y - y_ref|| / ||y_ref||, with
    y_ref the product with the dequantised weight in float64; `error to original` the same with the matrix that was
    quantised. A kernel whose error is more than it promises is no part of the ranking.

    The exit status is 1 where a kernel is wrong or fails, 2 where nothing can be measured as asked.

    With two RESULTS, files that --json wrote, it measures nothing and prints them side by side.
    """
    from codegemm import reporting
    from codegemm.comparison import pairs, plot, report
    from codegemm.comparison.compare import compare as measure

    if results:
        _check_alone(ctx, results)
        pairs.print_tables(*results)
        return
    if asked["tensors"] and asked["weights"] is None:
        raise click.UsageError("--tensor needs --weights")
    if asked["kernels"] and asked["precision"]:
        raise click.UsageError("--precision and --kernels: give one of them")
    options.check_outputs([json_path, plot_path], asked["weights"])
    if plot_path is not None and asked["kernels"] and "dense" not in {n.rpartition(":")[2] for n in asked["kernels"]}:
        raise click.UsageError("--plot draws multiples of dense: name it among the --kernels")
    try:
        if plugins:
            if ctx.get_parameter_source("engine") == ParameterSource.DEFAULT:
                asked["engine"] = plugins[0].engine
            _add(plugins, asked)
        result = measure(**asked, progress=sys.stderr.isatty())
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    # Files first: what reads the tables may be gone.
    if json_path is not None:
        reporting.write_json(result.as_json(), json_path)
    if plot_path is not None:
        plot.write_plot(result, plot_path)
    report.print_tables(result)
    for text in report.complaints(result):
        click.echo(text, err=True)
    if result.wrong or result.failed:
        sys.exit(1)


def _add(plugins: tuple[Kernel, ...], asked: dict[str, Any]) -> None:
    """To the kernels asked for, in the places where they are named."""
    from codegemm.comparison.selection import compared_kernels

    names = {name: plugin for plugin in plugins for name in (plugin.name, plugin.full_name)}
    kernels = asked["kernels"] or compared_kernels(asked["engine"], None, asked["precision"])
    kernels = [names.get(each, each) if isinstance(each, str) else each for each in kernels]
    asked |= {"kernels": [*kernels, *plugins], "precision": None}


def _check_alone(ctx: click.Context, results: tuple[Path, ...]) -> None:
    """UsageError unless two files are all that is asked for."""
    if len(results) != 2:
        raise click.UsageError(f"{', '.join(map(str, results))}: two results are compared, A.json and B.json")
    for param in ctx.command.params:
        if param.name != "results" and ctx.get_parameter_source(param.name or "") == ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{param.opts[0]}: is for measuring, and two results are only read")
