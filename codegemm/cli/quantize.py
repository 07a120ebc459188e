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
@click.option(
    "--calibration",
    "calibration_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Sums of the layers' inputs by the weights' names, as codegemm.calibration.save writes them.",
)
@click.option("--rotate", is_flag=True, help="Rotate the inputs: for weights with heavy tails.")
@click.option("--time-limit", type=float, help="Seconds for each matrix; then it is left as good as it is.")
@click.option("--seed", default=0, show_default=True)
def quantize(
    source: Path,
    target: Path,
    config: str,
    include: str,
    calibration_file: Path | None,
    rotate: bool,
    time_limit: float | None,
    seed: int,
) -> None:
    """Quantise the matrices of SOURCE whose names match, copy everything else, write TARGET.

    A matrix `name.weight` becomes the weight `name`. Embeddings are matrices too: name what you want with --include.
    """
    from codegemm import calibration
    from codegemm.config import CodebookConfig
    from codegemm.files import File, RawTensor
    from codegemm.formats.native import RESERVED
    from codegemm.quantize import E8P, check_config
    from codegemm.quantize import quantize as quantize_matrix
    from codegemm.storage import check_names, save_all

    try:
        wanted = re.compile(include)
    except re.error as error:
        raise click.BadParameter(f"--include {include!r}: {error}") from None
    if config != E8P:
        CodebookConfig.parse(config)
    if config == E8P and (rotate or calibration_file):
        raise click.BadParameter("--config e8p: takes no --calibration, and rotates without --rotate")
    if time_limit is not None and not time_limit >= 0:
        raise click.BadParameter(f"--time-limit {time_limit}: must be at least 0")
    check_writable(target)
    file = File(source)
    kept = {key: value for key, value in file.metadata.items() if key not in RESERVED}
    chosen = {name for name, tensor in file.tensors.items() if wanted.fullmatch(name) and tensor.is_matrix}
    targets = [name.removesuffix(".weight") for name in sorted(chosen)]
    for target_name in targets:
        if targets.count(target_name) > 1:
            raise click.ClickException(f"{source}: both {target_name} and {target_name}.weight match --include")
    check_names(targets, file.tensors.keys() - chosen, kept)
    calibrations = calibration.load(calibration_file) if calibration_file else {}
    unknown = sorted(calibrations.keys() - set(targets))
    if unknown:
        raise click.ClickException(f"{calibration_file}: {unknown[0]} is none of the matrices to quantise")
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
                weight = quantize_matrix(
                    tensor.numpy(),
                    config,
                    calibration=calibrations.get(name.removesuffix(".weight")),
                    rotate=rotate,
                    seed=seed,
                    progress=sys.stderr.isatty(),
                    time_limit=time_limit,
                )
            except ValueError as error:
                reason = str(error)
        if reason:
            click.echo(f"copied as it is: {name}: {reason}")
            copied[name] = tensor
        else:
            weights[name.removesuffix(".weight")] = weight
            known = name.removesuffix(".weight") in calibrations or not calibrations
            note = "" if known else ", without calibration: the file has none for it"
            click.echo(f"{name}: {list(tensor.shape)} at {weight.bits_per_weight:.3f} bits/weight{note}")
    if not weights:
        raise click.ClickException(f"{source}: nothing to quantise: no matrix matches --include {include!r}")
    save_all(target, weights, copied, kept)
    click.echo(
        f"{target}: {len(weights)} quantised, {len(copied)} copied; "
        f"{source.stat().st_size / 1e6:.1f} MB -> {target.stat().st_size / 1e6:.1f} MB"
    )
