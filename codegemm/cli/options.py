"""What the commands' options have in common."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from codegemm import files
from codegemm.errors import CheckpointError


class ListOf(click.ParamType):
    """Values of another type, separated by commas; one at least."""

    name = "list"

    def __init__(self, kind: click.ParamType = click.STRING) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        if isinstance(value, list):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if not parts:
            self.fail(f"{value!r}: names nothing", param, ctx)
        return [self._kind.convert(part, param, ctx) for part in parts]


class Several(click.Option):
    """An option that takes all words up to the next one that begins with `-`; it may be repeated, too."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{**settings, "multiple": True})

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Have click's parser take them one by one, as if the option had been repeated."""
        super().add_to_parser(parser, ctx)
        known = {**parser._long_opt, **parser._short_opt}
        for option in {id(known[name]): known[name] for name in self.opts}.values():
            option.process = _taking_all(option.process)


def _taking_all(take: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """take: what a value is given to, with the words behind it."""

    def process(value: Any, state: Any) -> None:
        take(value, state)
        while state.rargs and (state.rargs[0] == "-" or not state.rargs[0].startswith("-")):
            take(state.rargs.pop(0), state)

    return process


class Shape(click.ParamType):
    """(out_features, in_features) of `4096x1024`."""

    name = "MxK"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"([0-9]+)x([0-9]+)", value)
        if not match or not int(match[1]) or not int(match[2]):
            self.fail(f"{value!r}: must be <out_features>x<in_features>, like 4096x4096", param, ctx)
        return int(match[1]), int(match[2])


class NewFile(click.Path):
    """A file that can be made where it is to be."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            files.check_writable(value)
        except CheckpointError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


def check_outputs(outputs: Sequence[Path | None], model: Path | None, *others: Path | None) -> None:
    """UsageError for an output that is another one, or one of the command's inputs: a model's files, and others; of a
    folder among these all that it holds."""
    from codegemm.shards import open_model

    inputs = [] if model is None else open_model(model).paths
    written = [output for output in outputs if output is not None]
    if len({output.resolve() for output in written}) < len(written):
        raise click.UsageError(f"{written[0]}: is named for two outputs")
    for output in written:
        for each in filter(None, (*inputs, *others)):
            held = output.exists() and each.is_dir() and each.resolve() in output.resolve().parents
            if held or files.same(output, each):
                raise click.UsageError(f"{output}: would replace {output if held else each}, which is read")


class Picture(NewFile):
    """One that can be drawn, too, in a format of these."""

    def __init__(self, *suffixes: str) -> None:
        super().__init__()
        self._suffixes = suffixes or (".png",)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        reason = missing_plotting()
        if reason:
            self.fail(reason, param, ctx)
        if Path(value).suffix.lower() not in self._suffixes:
            kinds = " or ".join(suffix[1:].upper() for suffix in self._suffixes)
            example = f"{Path(value).stem}{self._suffixes[0]}"
            self.fail(f"{value}: pictures are {kinds}: name it so, like {example}", param, ctx)
        return super().convert(value, param, ctx)


class Plugin(click.ParamType):
    """A kernel of `module:Class`, found as Python finds modules and in the current folder."""

    name = "module:Class"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from codegemm import registry

        module, _, name = str(value).partition(":")
        if not module or not name:
            self.fail(f"{value!r}: must be <module>:<class>, like my_package:MyKernel", param, ctx)
        sys.path.insert(0, os.getcwd())
        try:
            found = getattr(importlib.import_module(module), name)
            kernel = found() if isinstance(found, type) else found
            registry.check(kernel)
        except Exception as error:  # whatever somebody's module does
            self.fail(f"{value}: {type(error).__name__}: {error}", param, ctx)
        finally:
            sys.path.remove(os.getcwd())
        return kernel


def missing_plotting() -> str | None:
    """Why nothing can be drawn, or None."""
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed: pip install 'codegemm[plot]'"
    return None


def missing_reporting() -> str | None:
    """Why no page can be made, or None."""
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed: pip install 'codegemm[report]'"
    return None


def missing_transformers() -> str | None:
    """Why no model of Hugging Face's can be read, or None."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed: pip install 'codegemm[hf]'"
    return None


def quiet_transformers() -> None:
    """Have transformers draw no bars where nobody sees them move."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()


def beside_bars() -> Callable[[str], None]:
    """What prints a line above bars, where there are any: they do not hear click."""
    return print if sys.stderr.isatty() and sys.stdout.isatty() else click.echo


def _find_engine(ctx: click.Context, param: click.Parameter, engine: str) -> str:
    from codegemm.measuring import conditions

    try:
        return conditions.engine_of(engine)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


SHAPES = click.option("--shape", "shapes", type=Shape(), multiple=True, help="MxK, of random codes (may be repeated).")
CONFIGS = click.option("--config", "configs", type=ListOf(), help="Configurations, like m1v4g128,m2v8g128,e8p,qtip.")
TENSORS = click.option("--tensor", "tensors", multiple=True, help="A matrix of the file (may be repeated).")
JSON = click.option("--json", "json_path", type=NewFile(), help="Write the result there.")
ENGINE = click.option(
    "--engine", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, callback=_find_engine
)
ROUNDS = click.option(
    "--rounds", type=click.IntRange(1), default=7, show_default=True, help="Turns of every product, in that time."
)
QUANTISE = click.option("--config", help="Quantise a dense model while it is read, like m1v4g64.")
DTYPE = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Type of activations and of what is not quantised; auto: the model's own, on a CPU float32.",
)
DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
THREADS = click.option(
    "--threads", type=click.IntRange(1), help="Threads of the CPU kernels; all processors by default."
)


class Seconds(click.FloatRange):
    """A number, which `nan` is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value} is not a number of at least 0.", param, ctx)
        return number


def batches(default: str) -> Callable[[Any], Any]:
    """Rows of x."""
    kind = ListOf(click.IntRange(1))
    return click.option("--batch", "batches", type=kind, default=default, show_default=True, help="Rows of x.")


def seconds(default: float) -> Callable[[Any], Any]:
    """For one measurement."""
    kind = Seconds(0)
    return click.option("--seconds", type=kind, default=default, show_default=True, help="Seconds for one measurement.")
