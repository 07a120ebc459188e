"""What `codegemm quantize` does with texts: a whole model, block by block."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codegemm.cli import options

if TYPE_CHECKING:
    from codegemm.hf.blockwise.result import QuantizedModel

_TOKENS, _LENGTH = 1 << 15, 512
_SETTINGS = (
    click.option(
        "--bits",
        type=click.FloatRange(0, min_open=True),
        help="Mean bits per weight to reach: which layer gets which configuration is found by measuring.",
    ),
    click.option(
        "--tokens", type=click.IntRange(1), help=f"Tokens of the texts to quantise for.  [default: {_TOKENS}]"
    ),
    click.option(
        "--length", type=click.IntRange(2), help=f"Tokens of a row that texts are cut into.  [default: {_LENGTH}]"
    ),
    click.option(
        "--tune",
        type=click.IntRange(1),
        metavar="STEPS",
        help="Train each block, in so many steps, to give what it did before.",
    ),
    click.option(
        "--distill",
        type=click.IntRange(1),
        metavar="TOKENS",
        help="Then train the model, on so many tokens of the texts, to give its original predictions.",
    ),
    click.option(
        "--layer",
        "layers",
        multiple=True,
        metavar="NAME=CONFIG",
        help="Another configuration for layers of a name or pattern (*.v_proj=m2v8g32; may be repeated).",
    ),
    click.option("--dense", "dense", multiple=True, metavar="NAME", help="What stays as it is (may be repeated)."),
    click.option(
        "--workers", type=click.IntRange(1), help="Processes.  [default: one for each core, at most 8; or GPU]"
    ),
    click.option("--keep", is_flag=True, help="Keep what another run, with --distill for instance, can go on from."),
    click.option("--spill", is_flag=True, help="Keep the hidden states on disk, beside TARGET."),
    options.DEVICE,
)


def OPTIONS(command: Callable[..., Any]) -> Callable[..., Any]:
    """Of the command, for texts alone."""
    for option in reversed(_SETTINGS):
        command = option(command)
    return command


def check_unused(given: Mapping[str, Any]) -> None:
    """UsageError for one of these options without texts."""
    for name, value in given.items():
        if value and value != "auto":
            option = {"layers": "layer"}.get(name, name)
            raise click.UsageError(f"--{option}: is for texts as --calibration")


def run(
    source: Path,
    target: Path,
    config: str | None,
    texts: tuple[Path, ...],
    *,
    rotate: bool,
    time_limit: float | None,
    seed: int,
    force: bool,
    dry_run: bool,
    bits: float | None,
    tokens: int | None,
    length: int | None,
    tune: int | None,
    distill: int | None,
    layers: tuple[str, ...],
    dense: tuple[str, ...],
    workers: int | None,
    keep: bool,
    spill: bool,
    device: str,
) -> None:
    """Quantise the model, and say what became of it."""
    if config is None and bits is None:
        raise click.UsageError("--config: is missing; without it, --bits has configurations chosen by layer")
    missing = options.missing_transformers()
    if missing:
        raise click.UsageError(missing)
    from codegemm.hf.blockwise.runner import quantize_model

    options.quiet_transformers()
    say = options.beside_bars()

    def tell(layer: Any) -> None:
        error = "without calibration" if layer.output_error is None else f"error of outputs {layer.output_error:.4f}"
        say(f"{layer.name}: {list(layer.shape)} at {layer.bits_per_weight:.3f} bits/weight, {error}")

    try:
        done = quantize_model(
            source, target, _config(config, bits, rotate), bits=bits, calibration=list(texts), tokens=tokens or _TOKENS,
            length=length or _LENGTH, tune=tune or 0, distill=distill or 0, layers=dict(map(_named, layers)),
            modules_to_not_convert=list(dense) or None, workers=workers, keep=keep, spill=spill, seed=seed,
            time_limit=time_limit, device=device, progress=sys.stderr.isatty(), on_layer=tell, force=force,
            dry_run=dry_run,
        )  # fmt: skip
    except KeyboardInterrupt:
        click.echo("stopped: the same command goes on from what is finished", err=True)
        sys.exit(130)
    _print_summary(target, done, dry_run, bits is not None)


def _config(text: str | None, bits: float | None, rotate: bool) -> Any:
    """The configuration of --config, or with --bits those to choose from."""
    from codegemm.hf.allocation.candidates import USUAL
    from codegemm.quantize import configured

    if bits is None:
        return configured(text, rotate)
    return [configured(each, rotate) for each in (USUAL if text is None else text.split(","))]


def _named(text: str) -> tuple[str, str]:
    """The name and the configuration of --layer."""
    name, equals, config = text.partition("=")
    if not name or not equals or not config:
        raise click.UsageError(f"--layer {text}: must be NAME=CONFIG, like *.v_proj=m2v8g32")
    return name, config


def _print_summary(target: Path, done: QuantizedModel, dry_run: bool, by_layer: bool) -> None:
    from codegemm import model_card

    if done.left_out:
        click.echo(f"not copied: {', '.join(done.left_out)}")
    if by_layer:
        counts = Counter(layer.config for layer in done.layers).most_common()
        click.echo(f"by layer: {', '.join(f'{config} ({count})' for config, count in counts)}")
    before = f", {done.resumed} of them before" if done.resumed else ""
    quantised = (
        f"{len(done.layers)} matrices {'to be ' * dry_run}quantised{before}, {done.bits_per_weight:.3f} bits/weight"
    )
    sizes = f"{done.source_bytes / 1e6:.1f} MB -> {'about ' * dry_run}{done.target_bytes / 1e6:.1f} MB"
    click.echo(f"{target}: {quantised}; {sizes}")
    if dry_run:
        click.echo(f"hidden states take {done.state_bytes / 1e6:.1f} MB, a block {done.block_bytes / 1e6:.1f} MB")
    else:
        click.echo(model_card.hint(target))
