"""`codegemm predict`: what the cost model says of a GPU, without one."""

from __future__ import annotations

import click

from codegemm.cli import options
from codegemm.engines.cuda.gpu import KNOWN

_COLUMNS = ("shape", "weights", "N", "kernel", "us", "waits for", "% of copy")
# Kernels and weights in whose times the others are told.
_OTHERS = {"x dense": ("dense", ""), "x aqlm 2x8": ("aqlm", "m2v8g-1"), "x quip": ("quip", "e8p")}


@click.command()
@click.option("--gpu", "name", type=click.Choice(list(KNOWN)), default="h200", show_default=True)
@options.SHAPES
@options.CONFIGS
@options.batches("1,2,4,8,16,32,64,128")
@click.option("--all", "every", is_flag=True, help="Every kernel, in place of the one that `auto` would take.")
def predict(
    name: str, shapes: tuple[tuple[int, int], ...], configs: list[str] | None, batches: list[int], every: bool
) -> None:
    """Predict the times of products on a GPU, from counts of the kernels' work and from the GPU's data sheet.

    Without --shape it takes the linear layers of Llama-3 8B and 70B.

    `waits for` is the part of the GPU that is busy longest, or the largest of the terms whose sum a product was found
    to take; `x dense`, `x aqlm 2x8` and `x quip` are how many times faster a product is than those kernels' of the same
    shape and batch.
    """
    from codegemm.measuring import sources
    from codegemm.prediction import predict, refusals
    from codegemm.reporting import by, decimals

    lines: list[tuple[str, ...]] = [(*_COLUMNS, *_OTHERS)]
    left_out: dict[tuple[str, str], list[str]] = {}  # batches by shape and reason
    for shape in shapes or (*sources.LLAMA_3["8b"], *sources.LLAMA_3["70b"]):
        held = sources.shape_case(shape, configs).configs
        rows = predict(KNOWN[name], [shape], held, batches)
        for n in sorted(set(batches) - {row.batch for row in rows}) if held else ():
            reasons = (reason for config in held for reason in refusals(KNOWN[name], shape, config, n).values())
            left_out.setdefault((by(shape), "; ".join(dict.fromkeys(reasons))), []).append(str(n))
        times = {(row.kernel, row.config, row.batch): row.seconds for row in rows}
        for row in rows:
            if row.chosen or every or row.kernel == "dense":
                others = (times.get((*other, row.batch)) for other in _OTHERS.values())
                lines.append((
                    by(shape), row.config, str(row.batch), row.kernel, f"{row.seconds * 1e6:.1f}",
                    row.bound, f"{100 * row.bandwidth_share:.0f}",
                    *(decimals(other and other / row.seconds) for other in others),
                ))  # fmt: skip
    told = [
        f"{shape}, N = {', '.join(ns)}: no kernel multiplies so: {reason}" for (shape, reason), ns in left_out.items()
    ]
    if told and len(lines) == 1:
        raise click.ClickException("\n".join(told))
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        click.echo("  ".join([f"predicted {name}", *(cell.ljust(width) for cell, width in zip(line, widths))]).rstrip())
    for text in told:
        click.echo(f"left out: {text}", err=True)
