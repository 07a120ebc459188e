"""`codegemm predict`: what the cost model says of a GPU, without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from codegemm.cli import options
from codegemm.engines.cuda.gpu import KNOWN, Gpu

if TYPE_CHECKING:
    from rich.table import Table

    from codegemm.prediction import Prediction

Shape = tuple[int, int]

# Kernels and weights in whose times the others are told.
_OTHERS = {"x\ndense": ("dense", ""), "x aqlm\n2x8": ("aqlm", "m2v8g-1"), "x\nquip": ("quip", "e8p")}


@click.command(short_help="Predict times on a GPU, without one.")
@click.option("--gpu", "name", type=click.Choice(list(KNOWN)), default="h200", show_default=True)
@options.SHAPES
@options.CONFIGS
@options.batches("1,2,4,8,16,32,64,128")
@click.option("--all", "every", is_flag=True, help="Every kernel, in place of the one that `auto` would take.")
def predict(name: str, shapes: tuple[Shape, ...], configs: list[str] | None, batches: list[int], every: bool) -> None:
    """Predict the times of products on a GPU, from counts of the kernels' work and from the GPU's data sheet.

    Without --shape it takes the linear layers of Llama-3 8B and 70B.

    `waits for` is the part of the GPU that is busy longest, or the largest of the terms whose sum a product was found
    to take; `x dense`, `x aqlm 2x8` and `x quip` are how many times faster a product is than those kernels' of the same
    shape and batch, the last two where m2v8g-1 and e8p are among the weights.
    """
    from codegemm.measuring import sources
    from codegemm.prediction import predict
    from codegemm.reporting import by, open_console

    gpu, tables, left_out = KNOWN[name], list["Table"](), list[str]()
    held = {shape: _held(shape, configs) for shape in shapes or (*sources.LLAMA_3["8b"], *sources.LLAMA_3["70b"])}
    for shape, fitting in held.items():
        rows = predict(gpu, [shape], fitting, batches)
        told = [row for row in rows if row.chosen or every]
        left_out += _left_out(gpu, shape, fitting, batches, told)
        if told:
            tables.append(_table(f"predicted for {name}: {by(shape)}", told, rows))
    if not tables:
        raise click.ClickException("\n".join(left_out))
    for number, table in enumerate(tables):
        open_console().print(*[""] * (number > 0), table, sep="\n")
    for text in left_out:
        click.echo(f"left out: {text}", err=True)


def _held(shape: Shape, configs: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the configurations for a shape, each once.

    ClickException where it can't be stored in one that is named, or in none of the usual ones.
    """
    from codegemm.formats.format import parse
    from codegemm.measuring.sources import RANDOM_CONFIGS, fitting
    from codegemm.reporting import by

    names = dict.fromkeys(str(parse(config)) for config in configs or RANDOM_CONFIGS)
    held, reasons = fitting(shape, list(names))
    if reasons and (configs or not held):
        raise click.ClickException("\n".join(f"{by(shape)}, {config}: {why}" for config, why in reasons.items()))
    return held


def _table(title: str, told: Sequence[Prediction], rows: Sequence[Prediction]) -> Table:
    """A line for each of `told`, in 80 columns; what they are compared with is among `rows`."""
    from rich.table import Table

    from codegemm.reporting import decimals

    times = {(row.kernel, row.config, row.batch): row.seconds for row in rows}
    others = {heading: [times.get((*key, row.batch)) for row in told] for heading, key in _OTHERS.items()}
    others = {heading: seconds for heading, seconds in others.items() if any(seconds)}
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("weights", "N", "kernel", "us", "% of\ncopy", *others):
        is_name = heading in ("weights", "kernel")
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=True)
    table.add_column("waits for")
    for row, *compared in zip(told, *others.values()):
        ratios = (decimals(seconds and seconds / row.seconds) for seconds in compared)
        table.add_row(
            row.config, str(row.batch), row.kernel, f"{row.seconds * 1e6:.1f}", f"{100 * row.bandwidth_share:.0f}",
            *ratios, row.bound,
        )  # fmt: skip
    return table


def _left_out(
    gpu: Gpu, shape: Shape, configs: Sequence[str], batches: Sequence[int], told: Sequence[Prediction]
) -> list[str]:
    """The products that no prediction is of, and why: those of several batches, or weights, in one sentence."""
    from codegemm.prediction import refusals
    from codegemm.reporting import by

    there = {(row.config, row.batch) for row in told}
    numbers: dict[tuple[str, str], list[int]] = {}  # by configuration and reason
    for config in configs:
        for n in dict.fromkeys(batches):
            if (config, n) not in there:
                reason = "; ".join(dict.fromkeys(refusals(gpu, shape, config, n).values()))
                numbers.setdefault((config, reason), []).append(n)
    named: dict[tuple[str, str], list[str]] = {}  # by reason and batches
    for (config, reason), ns in numbers.items():
        named.setdefault((reason, ", ".join(map(str, ns))), []).append(config)
    return [
        f"{by(shape)}, {', '.join(names)}, N = {ns}: no kernel multiplies so: {reason}"
        for (reason, ns), names in named.items()
    ]
