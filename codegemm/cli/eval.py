"""`codegemm eval`: how well a whole model predicts texts, and how far it is from its original."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from codegemm.cli import options


@click.command("eval", short_help="Say how well a model predicts texts, beside another.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--text",
    "texts",
    cls=options.Several,
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE...",
    help="Files of UTF-8: all words up to the next option (may be repeated).",
)
@click.option("--base", type=click.Path(path_type=Path), help="The folder of the model to compare with.")
@click.option(
    "--window", type=click.IntRange(2), help="Tokens read at a time.  [default: 512, or the model's positions]"
)
@click.option("--stride", type=click.IntRange(1), help="Tokens from one window to the next.  [default: --window]")
@click.option(
    "--tokens", type=click.IntRange(2), help="Read only so many tokens of each text, the first ones.  [default: all]"
)
@options.QUANTISE
@options.DTYPE
@options.DEVICE
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the intervals' bootstrap.")
@options.THREADS
@options.JSON
def evaluate(
    model: Path,
    texts: tuple[Path, ...],
    base: Path | None,
    window: int | None,
    stride: int | None,
    tokens: int | None,
    config: str | None,
    dtype: str,
    device: str,
    seed: int,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Say how well the model in the folder MODEL (one of codegemm's, one of AQLM's, or a dense one) predicts texts.

    Prints the perplexity of each text; with --base also by what factor the base's is exceeded, KL(base || model), and
    how often both models have the same likeliest token. Of an encoder like BERT, which needs --base: the cosines of
    embeddings. MODEL stands before --text, or behind `--`.
    """
    missing = options.missing_transformers()
    if missing:
        raise click.UsageError(missing)
    options.check_outputs([json_path], None, model, base, *texts)
    from codegemm.hf.evaluation import report, runner
    from codegemm.measuring import conditions
    from codegemm.reporting import write_json

    options.quiet_transformers()
    with conditions.threads(threads):
        found = runner.evaluate(
            model, texts, base=base, window=window, stride=stride, tokens=tokens, config=config, device=device,
            dtype=dtype, seed=seed, progress=sys.stderr.isatty(),
        )  # fmt: skip
    if json_path is not None:
        write_json(report.as_json(found), json_path)
    report.print_evaluation(found)
