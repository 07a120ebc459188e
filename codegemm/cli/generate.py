"""`codegemm generate`: text of a Hugging Face model's folder, and how fast it came."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codegemm.cli import options

if TYPE_CHECKING:
    from codegemm.hf.generation import Speed
    from codegemm.hf.sizes import Sizes


@click.command(short_help="Let a model write text, and say how fast it does.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="What the model goes on from, or answers where it has a chat template.")
@click.option("--max-new-tokens", "count", type=click.IntRange(1), default=128, show_default=True)
@click.option("--raw", is_flag=True, help="The prompt as it is, without the chat template.")
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0: the likeliest token always."
)
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 63) - 1),
    default=0,
    show_default=True,
    help="Seed of what --temperature draws.",
)
@options.QUANTISE
@options.DTYPE
@options.DEVICE
@options.THREADS
@options.JSON
def generate(
    model: Path,
    prompt: str,
    count: int,
    raw: bool,
    temperature: float,
    seed: int,
    config: str | None,
    dtype: str,
    device: str,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Continue --prompt with the model in the folder MODEL: one of codegemm's, one of AQLM's, or a dense one.

    The text goes to standard output as it comes; then, to standard error, tokens a second of reading the prompt and of
    writing, and what the weights take. Ctrl-C ends the text.
    """
    missing = options.missing_transformers()
    if missing:
        raise click.UsageError(missing)
    options.check_outputs([json_path], None, model)
    from transformers import TextStreamer

    from codegemm.formats.format import parse
    from codegemm.hf import generation
    from codegemm.hf.decoding import Decoder
    from codegemm.hf.sizes import sizes
    from codegemm.measuring import conditions

    options.quiet_transformers()
    if config is not None:
        parse(config)
    where, known = generation.device_named(device), generation.open_config(model)
    if config is not None and getattr(known, "quantization_config", None):
        raise click.UsageError(f"--config {config}: {model} is quantised already")
    tokenizer = generation.open_tokenizer(model)
    ids = generation.encode(tokenizer, prompt, raw)
    generation.check_room(known, ids.shape[1], count)
    with conditions.threads(threads):
        loaded = generation.open_model(model, where, dtype, config)
        taken = sizes(loaded)
        decoder = Decoder(loaded, ids.shape[1] + count - 1, temperature=temperature, seed=seed)
        streamer, speed = TextStreamer(tokenizer, skip_special_tokens=True), generation.Speed(ids.shape[1])
        stopped = False
        try:
            for token in generation.timed_tokens(decoder, ids, count, generation.ends(loaded), speed):
                streamer.put(ids.new_tensor([token]))
        except KeyboardInterrupt:
            stopped = True
        streamer.end()
    _tell(loaded, decoder.reason, speed, taken, json_path)
    if stopped:
        sys.exit(130)


def _tell(loaded: Any, reason: str | None, speed: Speed, taken: Sizes, json_path: Path | None) -> None:
    """The numbers, on standard error and as JSON."""
    from codegemm.hf.sizes import gpu_peak
    from codegemm.reporting import counted, write_json

    on_gpu = loaded.device.type == "cuda"
    peak = gpu_peak() if on_gpu else None
    lines = [
        ("prefill", speed.prompt_tokens, speed.prefill_seconds, speed.prefill),
        ("decode", max(speed.new_tokens - 1, 0), speed.decode_seconds, speed.decode),
    ]
    click.echo(err=True)
    for name, tokens, seconds, each in lines:
        click.echo(f"{name:8} {each:.1f} tokens/s ({counted(tokens, 'token')} in {seconds:.2f} s)", err=True)
    click.echo(f"weights  {taken.held / 1e6:.1f} MB, in float16 {taken.half / 1e6:.1f} MB", err=True)
    if peak is not None:
        click.echo(f"GPU      {peak / 1e6:.1f} MB allocated at most", err=True)
    if on_gpu and reason:
        click.echo(f"no CUDA graph: {reason}", err=True)
    if json_path is not None:
        told = {
            "model": loaded.name_or_path, "device": str(loaded.device), "dtype": str(loaded.dtype).split(".")[-1],
            **vars(speed), "prefill_tokens_per_second": speed.prefill, "decode_tokens_per_second": speed.decode,
            "weight_bytes": taken.held, "float16_bytes": taken.half, "gpu_peak_bytes": peak, "no_graph": reason,
        }  # fmt: skip
        write_json(told, json_path)
