"""`codegemm predict`: what the cost model says of a GPU, without one."""

from __future__ import annotations

from itertools import zip_longest

import click

from codegemm.cli.options import ListOf, check_lists, parse_shape
from codegemm.engines.cuda.gpu import KNOWN

_COLUMNS = ("shape", "weights", "N", "kernel", "us", "waits for", "% of copy", "x dense", "x aqlm 2x8", "x quip")


@click.command()
@click.option("--gpu", "name", type=click.Choice(list(KNOWN)), default="h200", show_default=True)
@click.option("--shape", "shapes", multiple=True, help="MxK (may be repeated); of Llama-3 8B and 70B by default.")
@click.option("--config", "configs", type=ListOf(), help="Configurations, like m1v4g128,m2v8g128,e8p.")
@click.option("--batch", "batches", type=ListOf(int), default="1,2,4,8,16,32,64,128", show_default=True)
@click.option("--all", "every", is_flag=True, help="Every kernel, in place of the one that `auto` would take.")
def predict(name: str, shapes: tuple[str, ...], configs: list[str] | None, batches: list[int], every: bool) -> None:
    """Predict the times of products on a GPU, from counts of the kernels' work and from the GPU's data sheet.

    First comes what the kernels are to reach. `waits for` is the part of the GPU that is busy longest, or the largest
    of the terms whose sum a product was found to take; `x dense`, `x aqlm 2x8` and `x quip` are how many times faster a
    product is than those kernels' of the same shape and batch.
    """
    from codegemm.comparison import sources, targets
    from codegemm.prediction import copy_bandwidth, predict

    check_lists(batches, config=configs)
    gpu = KNOWN[name]
    aims = {(target.shape, target.batch) for target in targets.TARGETS}
    listed = [parse_shape(shape) for shape in shapes] or [*sources.LLAMA_3["8b"], *sources.LLAMA_3["70b"]]
    label = f"predicted {name}"

    known = predict(gpu, {shape for shape, _ in aims}, sources.RANDOM_CONFIGS, sorted({n for _, n in aims} | {64, 128}))
    waits = {(row.shape, row.config, row.batch): row.bound for row in known if row.chosen}
    for target, outcome in zip_longest(targets.TARGETS, targets.outcomes(known, copy_bandwidth(gpu))):
        value = "unknown" if outcome.found is None else f"{outcome.found:.2f}"
        verdict = {None: "no such kernel", True: "met", False: "missed"}[outcome.is_met]
        cause = waits.get((target.shape, target.config, target.batch)) if target and outcome.is_met is False else None
        statement = f"{outcome.statement}; the largest part is {cause}" if cause else outcome.statement
        click.echo(f"{label}  {value:>8}  {verdict:14}  {statement}")
    click.echo()
    lines: list[tuple[str, ...]] = [_COLUMNS]
    for shape in listed:
        rows = predict(gpu, [shape], sources.shape_case(shape, configs).configs, batches)
        times = {(row.kernel, row.config, row.batch): row.seconds for row in rows}
        for row in rows:
            if row.chosen or every or row.kernel == "dense":
                others = (times.get((*other, row.batch)) for other in (targets.DENSE, targets.AQLM, targets.QUIP))
                lines.append((
                    f"{shape[0]} x {shape[1]}", row.config, str(row.batch), row.kernel, f"{row.seconds * 1e6:.1f}",
                    row.bound, f"{100 * row.bandwidth_share:.0f}",
                    *("" if other is None else f"{other / row.seconds:.2f}" for other in others),
                ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        click.echo("  ".join([label, *(cell.ljust(width) for cell, width in zip(line, widths))]).rstrip())
