"""`codegemm cache`: the folder of compiled kernels and quantised weights."""

from __future__ import annotations

import click


@click.group()
def cache() -> None:
    """The user's cache of compiled kernels and quantised weights."""


@cache.command()
def path() -> None:
    """Print where it is."""
    from codegemm.cache import root

    click.echo(root())


@cache.command()
def clear() -> None:
    """Remove every entry, and what processes that were killed left there a day ago or earlier."""
    from codegemm import cache as entries

    count, size = entries.clear()
    click.echo(f"removed {count} files, {size / 1e6:.1f} MB")
