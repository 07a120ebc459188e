"""`codegemm quantize`: the matrices of a safetensors file into the package's format."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from codegemm.cli.options import check_writable


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--config", required=True, help="Like m2v8g128, or e8p.")
@click.option(
    "--include",
    default=r".*\.weight",
    show_default=True,
    help="Regular expression of the whole tensor names.",
)
@click.option("--seed", default=0, show_default=True)
def quantize(source: Path, target: Path, config: str, include: str, seed: int) -> None:
    """Quantise the matrices of SOURCE whose names match, copy everything else, write TARGET.

    A matrix `name.weight` becomes the weight `name`. Embeddings are matrices too: name what you want with --include.
    """
    from codegemm.config import CodebookConfig
    from codegemm.quantize import E8P, check_config
    from codegemm.quantize import quantize as quantize_matrix
    from codegemm.storage import RESERVED, File, RawTensor, check_names, save_all

    try:
        wanted = re.compile(include)
    except re.error as error:
        raise click.BadParameter(f"--include {include!r}: {error}") from None
    if config != E8P:
        CodebookConfig.parse(config)
    check_writable(target)
    file = File(source)
    kept = {key: value for key, value in file.metadata.items() if key not in RESERVED}
    chosen = {name for name, tensor in file.tensors.items() if wanted.fullmatch(name) and tensor.is_matrix}
    targets = [name.removesuffix(".weight") for name in sorted(chosen)]
    for target_name in targets:
        if targets.count(target_name) > 1:
            raise click.ClickException(f"{source}: both {target_name} and {target_name}.weight match --include")
    check_names(targets, file.tensors.keys() - chosen, kept)
    weights, copied = {}, dict[str, RawTensor]()
    for name, tensor in file.tensors.items():
        if not wanted.fullmatch(name):
            copied[name] = tensor
            continue
        reason = None
        if not tensor.is_matrix:
            reason = f"{tensor} is not a matrix of floats"
        else:
            try:
                check_config(config, (tensor.shape[0], tensor.shape[1]))
                weight = quantize_matrix(tensor.numpy(), config, seed=seed, progress=sys.stderr.isatty())
            except ValueError as error:
                reason = str(error)
        if reason:
            click.echo(f"copied as it is: {name}: {reason}")
            copied[name] = tensor
        else:
            weights[name.removesuffix(".weight")] = weight
            click.echo(f"{name}: {list(tensor.shape)} at {weight.bits_per_weight:.3f} bits/weight")
    if not weights:
        raise click.ClickException(f"{source}: nothing to quantise: no matrix matches --include {include!r}")
    save_all(target, weights, copied, kept)
    click.echo(
        f"{target}: {len(weights)} quantised, {len(copied)} copied; "
        f"{source.stat().st_size / 1e6:.1f} MB -> {target.stat().st_size / 1e6:.1f} MB"
    )
