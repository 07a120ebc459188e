"""`codegemm compare`: the head-to-head comparison on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from codegemm.cli import options
from codegemm.registry import PRECISIONS


@click.command()
@click.option(
    "--weights", type=click.Path(path_type=Path), help="A safetensors file, or a model's folder, to take matrices from."
)
@options.TENSORS
@options.SHAPES
@options.CONFIGS
@options.batches("1,4,16")
@click.option("--kernels", "names", type=options.ListOf(), help="Kernels, like psumbook or cpu:psumbook; else all.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Only kernels of that precision beside dense ones.")
@click.option("--paths", type=options.ListOf(), help="Instruction sets for the CPU kernels, like avx2,plain.")
@options.ENGINE
@options.THREADS
@options.seconds(0.25)
@options.JSON
@click.option("--plot", "plot_path", type=options.Picture(), help="Draw it there (PNG).")
def compare(
    weights: Path | None,
    tensors: tuple[str, ...],
    shapes: tuple[tuple[int, int], ...],
    configs: list[str] | None,
    batches: list[int],
    names: list[str] | None,
    precision: str | None,
    paths: list[str] | None,
    engine: str,
    threads: int | None,
    seconds: float,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Multiply by quantised weights with every kernel of this machine, and print the times and errors.

    Without --weights or --shape it takes trained weights of MiniLM and the shapes of Llama-3-8B; of a file, without
    --tensor, the first matrix of each shape that layers have. `error` is ||y - y_ref|| / ||y_ref||, with y_ref the
    product with the dequantised weight in float64; `error to original` the same with the matrix that was quantised.
    """
    from codegemm.comparison import report, runner, selection
    from codegemm.measuring import conditions, sources
    from codegemm.quantize.progress import Progress
    from codegemm.reporting import write_json

    if tensors and weights is None:
        raise click.UsageError("--tensor needs --weights")
    if names and precision:
        raise click.UsageError("--precision and --kernels: give one of them")
    options.check_outputs([json_path, plot_path], weights)
    kernels = selection.compared_kernels(engine, names, precision)
    compared_paths = selection.compared_paths(engine, paths)
    cases = [] if weights is None else sources.file_cases(weights, tensors, configs)
    cases += [sources.shape_case(shape, configs) for shape in shapes]
    if weights is None and not shapes:
        cases = sources.default_cases(configs)

    with conditions.threads(threads), Progress("comparing", sys.stderr.isatty()) as progress:
        result = runner.run(cases, kernels, batches, engine, seconds, progress, compared_paths)
    report.print_tables(result)
    if json_path is not None:
        write_json(result, json_path)
    if plot_path is not None:
        report.write_plot(result, plot_path)
