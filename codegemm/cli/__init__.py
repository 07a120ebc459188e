"""The command line: `codegemm compare`, `explore` and the others, one module each."""

from __future__ import annotations

import sys

import click

from codegemm.cli.bench_model import bench_model
from codegemm.cli.cache import cache
from codegemm.cli.compare import compare
from codegemm.cli.convert import convert
from codegemm.cli.doctor import doctor
from codegemm.cli.eval import evaluate
from codegemm.cli.explore import explore
from codegemm.cli.generate import generate
from codegemm.cli.info import info
from codegemm.cli.predict import predict
from codegemm.cli.quantize import quantize
from codegemm.cli.report import report
from codegemm.cli.reproduce import reproduce
from codegemm.cli.tune import tune
from codegemm.errors import KernelError
from codegemm.version import __version__

_COMPLETION = (
    'Completion in bash: eval "$(_CODEGEMM_COMPLETE=bash_source codegemm)"; zsh_source and fish_source likewise.'
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_COMPLETION)
@click.version_option(__version__, prog_name="codegemm")
def cli() -> None:
    """Multiply by codebook-quantised weights, and compare the kernels that do."""


for command in (
    compare,
    reproduce,
    report,
    explore,
    tune,
    predict,
    quantize,
    convert,
    info,
    generate,
    evaluate,
    bench_model,
    cache,
    doctor,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; what a user did wrong is one line, not a traceback."""
    try:
        cli(standalone_mode=False)
    except click.Abort:
        click.echo("stopped: nothing was written", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (ValueError, KernelError, OSError, MemoryError) as error:
        click.echo(f"codegemm: {error or 'there is too little memory'}", err=True)
        sys.exit(1)
