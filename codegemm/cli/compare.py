"""`codegemm compare`: the head-to-head comparison on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from codegemm.cli.options import ListOf, check_lists, check_plotting, check_writable, find_engine, parse_shape
from codegemm.registry import PRECISIONS


@click.command()
@click.option("--weights", type=click.Path(path_type=Path), help="A safetensors file to take matrices from.")
@click.option(
    "--tensor",
    "tensors",
    multiple=True,
    help="A matrix of that file, in place of the first of each shape (may be repeated).",
)
@click.option("--shape", "shapes", multiple=True, help="MxK with random codes (may be repeated).")
@click.option("--config", "configs", type=ListOf(), help="Configurations, like m1v4g128,m2v8g128,e8p.")
@click.option("--batch", "batches", type=ListOf(int), default="1,4,16", show_default=True, help="Rows of x.")
@click.option("--kernels", "names", type=ListOf(), help="Kernels, in place of all.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Only kernels of that precision beside dense ones.")
@click.option("--paths", type=ListOf(), help="Instruction sets for the CPU kernels, like avx2,plain.")
@click.option("--engine", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads of the CPU kernels; all processors by default.")
@click.option("--seconds", type=click.FloatRange(0), default=0.25, show_default=True, help="For one measurement.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the result there.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path, dir_okay=False), help="Draw it there (PNG).")
def compare(
    weights: Path | None,
    tensors: tuple[str, ...],
    shapes: tuple[str, ...],
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

    Without --weights or --shape it takes trained weights of MiniLM and the shapes of Llama-3-8B. `error` is
    ||y - y_ref|| / ||y_ref||, with y_ref the product with the dequantised weight in float64; `error to original`
    the same with the matrix that was quantised.
    """
    from codegemm.comparison import measure, report, runner, sources
    from codegemm.quantize.progress import Progress

    if tensors and weights is None:
        raise click.UsageError("--tensor needs --weights")
    check_lists(batches, config=configs, kernels=names, paths=paths)
    check_writable(json_path, plot_path)
    if plot_path is not None:
        check_plotting("--plot")
    engine = find_engine(engine)
    if names and precision:
        raise click.UsageError("--precision and --kernels: give one of them")
    kernels = measure.compared_kernels(engine, names, precision)
    compared_paths = measure.compared_paths(engine, paths)

    cases = []
    if weights is not None:
        cases += sources.file_cases(weights, tensors, configs)
    cases += [sources.shape_case(parse_shape(shape), configs) for shape in shapes]
    if weights is None and not shapes:
        cases = sources.default_cases(configs)

    with measure.threads(threads), Progress("comparing", sys.stderr.isatty()) as progress:
        result = runner.run(cases, kernels, batches, engine, seconds, progress, compared_paths)
    report.print_tables(result)
    if json_path is not None:
        report.write_json(result, json_path)
    if plot_path is not None:
        report.write_plot(result, plot_path)
