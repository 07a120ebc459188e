"""`codegemm report`: results of other commands, and predictions, as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from codegemm.cli import options
from codegemm.engines.cuda.gpu import KNOWN


@click.command(short_help="Write one HTML page of results.")
@click.argument("results", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--predict", "gpus", type=click.Choice(list(KNOWN)), multiple=True, help="Times there (may be repeated).")
@click.option("--output", "-o", type=options.NewFile(), required=True, help="Write the page there.")
def report(results: tuple[Path, ...], gpus: tuple[str, ...], output: Path) -> None:
    """Write one HTML page of what was measured and predicted, which needs nothing else to be looked at.

    RESULTS are files that `codegemm compare --json`, `codegemm reproduce --json` or `make gpu` (bench-*.json) wrote.
    With --predict the page has the times that the cost model predicts for the layers of Llama-3, marked as such.

    It has the machines, every product in tables that sort, pictures, and the cells in which something else is faster
    than this package's own kernel.
    """
    reason = options.missing_reporting()
    if reason:
        raise click.UsageError(reason)
    if not results and not gpus:
        raise click.UsageError("nothing to report: name RESULTS, or a GPU with --predict")
    options.check_outputs([output], None, *results)
    from codegemm import files
    from codegemm.report import page, reading

    sources = [reading.read(path) for path in dict.fromkeys(results)]
    sources += [reading.predictions(gpu) for gpu in dict.fromkeys(gpus)]
    files.replace_file(output, [page.render(sources).encode()])
    click.echo(f"wrote {output}")
