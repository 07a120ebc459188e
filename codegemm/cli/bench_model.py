"""`codegemm bench-model`: how fast whole models decode."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codegemm.cli import options

if TYPE_CHECKING:
    from codegemm.hf.bench.candidates import Choice


@click.command("bench-model", short_help="Time how fast models decode, beside other kernels.")
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--llama", "llama_name", type=click.Choice(["8b", "70b"]), help="Llama-3.1 of that size, with --random.")
@click.option("--random", "is_random", is_flag=True, help="Random weights, other ones in every layer.")
@click.option(
    "--config", "configs", type=options.ListOf(), help="Configurations for --random; m1v4g128,m2v8g128 by default."
)
@click.option(
    "--batch",
    "batches",
    type=options.ListOf(click.IntRange(1)),
    default="1",
    show_default=True,
    help="Texts at a time.",
)
@click.option(
    "--prompt-length", type=click.IntRange(1), default=128, show_default=True, help="Tokens before the first timed one."
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Tokens that are written for each text in a round.",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of every model.")
@options.ENGINE
@options.THREADS
@options.JSON
def bench_model(
    model: Path | None,
    llama_name: str | None,
    is_random: bool,
    configs: list[str] | None,
    batches: list[int],
    prompt_length: int,
    tokens: int,
    rounds: int,
    engine: str,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Time the decoding of the model in the folder MODEL beside its dequantised self; or of --llama with --random
    weights in several configurations, by itself and fused, beside dense ones and other projects' kernels.

    On a GPU steps are replayed as CUDA graphs; on a processor --llama is one block of the model. Models take turns,
    all that fit into memory together; the cache holds zeros for the prompt, which is not timed.
    """
    missing = options.missing_transformers()
    if missing:
        raise click.UsageError(missing)
    if (model is None) == (llama_name is None):
        raise click.UsageError("give MODEL, or --llama 8b or 70b with --random")
    if (llama_name is None) == is_random:
        raise click.UsageError("--llama and --random go together: there are no other weights of it here")
    if configs and model is not None:
        raise click.UsageError(f"--config {','.join(configs)}: {model} is measured as it is; --config is for --random")
    options.check_outputs([json_path], None, model)
    from codegemm.hf import generation
    from codegemm.hf.bench import candidates, report, runner
    from codegemm.hf.sizes import cache_bytes
    from codegemm.measuring import conditions
    from codegemm.measuring.machine import Machine
    from codegemm.reporting import write_json

    options.quiet_transformers()
    device = generation.device_named(engine)
    batches = list(dict.fromkeys(batches))
    with conditions.threads(threads):
        title, config, choice = _choice(model, llama_name, configs or ["m1v4g128", "m2v8g128"], batches, device)
        settings = runner.Settings(batches, prompt_length, tokens, rounds)
        most = getattr(config, "max_position_embeddings", None)
        if most is not None and settings.positions > most:
            said = f"--prompt-length {prompt_length} and --tokens {tokens}: {settings.positions} positions"
            raise click.UsageError(f"{said}, and the model has {most}")
        caches = cache_bytes(config, settings.positions, sum(batches), candidates.dtypes(device)[0].itemsize)
        machine = Machine.here(engine)

        def left_out(found: runner.Found) -> dict[str, str]:
            return choice.left_out | found.too_large | found.failed

        def keep(found: runner.Found) -> None:
            if json_path is not None:
                write_json(report.as_json(title, found.rows, left_out(found), settings, machine), json_path)

        found = runner.run(choice.candidates, settings, device, caches, lambda text: click.echo(text, err=True), keep)
        machine = machine.again()
    if not found.rows:
        raise click.UsageError("; ".join(f"{name}: {reason}" for name, reason in left_out(found).items()))
    keep(found)
    report.print_rows(title, found.rows, left_out(found), settings, machine)
    if found.failed:
        sys.exit(1)


def _choice(
    model: Path | None, llama_name: str | None, configs: Sequence[str], batches: Sequence[int], device: Any
) -> tuple[str, Any, Choice]:
    """What is measured: its title, the model's configuration, and who takes part."""
    from codegemm.hf import generation
    from codegemm.hf.bench import candidates, llama

    if model is not None:
        config = generation.open_config(model).get_text_config()
        return str(model), config, candidates.folder_models(model, device)
    assert llama_name is not None
    title, config = f"Llama-3.1-{llama_name.upper()}, random weights", llama.whole(llama_name)
    if device.type == "cpu":
        title += f": one block of {config.num_hidden_layers}, without embedding and head"
        config = llama.one_block(llama_name)
    return title, config, candidates.random_models(config, configs, batches, device)
